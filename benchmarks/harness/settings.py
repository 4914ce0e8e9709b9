"""What a run of the benchmarks is asked for, by environment variables, as ``make bench`` sets them.

QUICK=1 takes few cases and few samples. DEVICE is ``cpu`` or ``cuda``; a GPU if there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from benchmarks.harness.measure import Budget

NUM_ROUNDS = 8  # different ones that are timed, again and again


@dataclass(frozen=True)
class Settings:
    """Where and how thoroughly."""

    device: torch.device
    quick: bool

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def op_budget(self) -> Budget:
        """For the variants of one case of an op."""
        if self.quick:
            return Budget(seconds=0.3, min_samples=7, max_samples=60)
        return Budget(seconds=0.4)

    @property
    def round_budget(self) -> Budget:
        """For the variants of one case of whole rounds.

        On a GPU every round occurs several times before the first sample: a captured step takes the
        first two of a size launch by launch and captures the third.
        """
        if self.is_gpu:
            seconds, passes = (4, 3) if self.quick else (15, 4)
            return Budget(
                seconds, min_samples=8, warm_ups=passes * NUM_ROUNDS, warm_up_seconds=seconds
            )
        if self.quick:
            return Budget(seconds=8, min_samples=3, max_samples=7, warm_ups=1, variant_seconds=10)
        return Budget(
            seconds=240,
            min_samples=5,
            max_samples=15,
            warm_ups=2,
            warm_up_seconds=2,
            variant_seconds=30,
        )


def settings() -> Settings:
    """From the environment."""
    wanted = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return Settings(torch.device(wanted), os.environ.get("QUICK", "") not in ("", "0"))
