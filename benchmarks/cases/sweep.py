"""Rounds of growing batches and of growing lengths: how time per token changes.

The calls are those of ``round.py``, which checks them.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases.round import BF16_PEER, FAST, FP32_PEER, Round, peer_of
from benchmarks.harness.benchmark import Absent
from benchmarks.harness.measure import Budget
from benchmarks.harness.shapes import Case

BATCHES = (8, 64, 32, 16)  # the ends first, as time may be short
LENGTHS = (512, 32, 128, 16, 64, 256)
PEERS_BATCH = "round-8"  # that the peer is timed with on a CPU


class Sweep(Round):
    name = "sweep"
    variants = (FAST, f"{FAST} joint", BF16_PEER, FP32_PEER)

    def cases(self):
        quick = self.settings.quick
        batches = [f"round-{n}" for n in ((8, 32) if quick else BATCHES)]
        lengths = [] if quick else [f"tokens-{n}" for n in LENGTHS]
        for batch in batches + lengths:
            yield Case("minilm", batch, "", "train")

    def budget(self, case: Case) -> Budget:
        if self.settings.is_gpu:
            return replace(self.settings.round_budget, seconds=2.0, warm_up_seconds=3.0)
        least = 2 if self.settings.quick else 3
        return Budget(seconds=3.0, min_samples=least, max_samples=9, warm_ups=1, variant_seconds=9)

    def _leave_out(self, case: Case, variant: str) -> None:
        if variant not in (BF16_PEER, FP32_PEER):
            return
        if variant != peer_of(self.settings):
            raise Absent(f"{peer_of(self.settings)} is quicker here")
        if self.settings.is_gpu:
            return
        if self.settings.quick:
            raise Absent("a quick run has our rounds alone")
        if case.batch != PEERS_BATCH:
            raise Absent(f"takes too long on a CPU but for {PEERS_BATCH}")

    def share(self, case: Case) -> float:
        return 1.0

    def _is_checked(self, case: Case) -> bool:
        return False
