"""Rounds of growing batches and of growing lengths: how time per token changes.

The calls are those of ``bench_round.py``, which checks them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.bench_round import FAST, Round
from benchmarks.measure import Budget
from benchmarks.ops import Absent
from benchmarks.shapes import Case

PEER = "hf bf16 sdpa"
BATCHES = (8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512)
PEERS_LARGEST = 16  # examples a task that the peer is timed with on a CPU


class Sweep(Round):
    name = "sweep"
    variants = (FAST, "fast bf16 joint", PEER)

    def cases(self):
        quick = self.settings.quick
        batches = [f"round-{n}" for n in ((8, 32) if quick else BATCHES)]
        lengths = [] if quick else [f"tokens-{n}" for n in LENGTHS]
        for batch in batches + lengths:
            yield Case("minilm", batch, "", "train")

    def budget(self, case: Case) -> Budget:
        if self.settings.is_gpu:
            return replace(self.settings.round_budget, seconds=2.0, min_samples=5)
        least = 2 if self.settings.quick else 3
        return Budget(seconds=3.0, min_samples=least, max_samples=9, warm_ups=1)

    def _leave_out(self, case: Case, variant: str) -> None:
        if variant != PEER or self.settings.is_gpu:
            return
        if self.settings.quick:
            raise Absent("a quick run has our rounds alone")
        kind, _, number = case.batch.partition("-")
        if kind == "round" and int(number) > PEERS_LARGEST:
            raise Absent(f"more than {PEERS_LARGEST} examples a task take too long on a CPU")

    def _is_checked(self, case: Case) -> bool:
        return False


@pytest.mark.compares(kind=Sweep)
def test_sweep(measured, case, variant):
    measured(case, variant)
