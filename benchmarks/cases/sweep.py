"""Rounds of growing batches and of growing lengths: how time per token changes.

The calls are those of ``round.py``, which checks them. All sizes take turns, so that a change of
the machine's speed meets all. A variant has one model for all of them, whose optimiser has seen the
words of all: what it costs does not depend on the size. A sample of a small size is several rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from benchmarks.cases import round_variants as names
from benchmarks.cases.round import Round, fresh_trainee, peer_of
from benchmarks.harness.benchmark import Absent
from benchmarks.harness.measure import Budget
from benchmarks.harness.rounds import Rounds
from benchmarks.harness.settings import NUM_ROUNDS
from benchmarks.harness.shapes import Case

BATCHES = (64, 8, 32, 16)  # examples a task: the ends first, as time may be short
LENGTHS = (512, 16, 128, 64, 256)  # tokens a sequence
MOST_ROUNDS = 4  # of a sample: so many of 8 examples a task, one of 32 or more


class Sweep(Round):
    name, is_interleaved = "sweep", True
    variants = (f"{names.FAST}{names.JOINT}", names.FAST, names.BF16_PEER, names.FP32_PEER)

    def __init__(self, settings):
        super().__init__(settings)
        self._shared: dict[str, object] = {}

    def cases(self):
        quick = self.settings.quick
        batches = [f"round-{n}" for n in ((32, 8) if quick else BATCHES)]
        lengths = [f"tokens-{n}" for n in ((512, 16) if quick else LENGTHS)]
        for batch in batches + lengths:
            yield Case("minilm", batch, "", "train")

    def budget(self, case: Case) -> Budget:
        if self.settings.is_gpu:
            budget = self.settings.round_budget
            return replace(budget, seconds=4 * budget.seconds, warm_up_seconds=3.0)
        seconds, least, most = (8.0, 2, 5) if self.settings.quick else (150.0, 5, 15)
        # All rounds of a small size, which a matrix library prepares for; all lengths are alike.
        warm_ups = NUM_ROUNDS if self._rounds_of_a_sample(case) > 1 else 1
        return Budget(seconds, least, most, warm_ups=warm_ups, warm_up_seconds=3.0)

    def calls(self, case: Case, variant: str, num_sets: int):
        """A call is a round; there are as many as make a sample."""
        (call,) = super().calls(case, variant, num_sets)
        return [call] * self._rounds_of_a_sample(case)

    def _rounds_of_a_sample(self, case: Case) -> int:
        kind, _, number = case.batch.partition("-")
        return max(1, MOST_ROUNDS * 8 // int(number)) if kind == "round" else 1

    def _train(self, case: Case, variant: str, is_one_batch: bool) -> Callable:
        """Of the variant's one model, whose rounds are counted over all sizes."""
        if names.is_peer(variant):
            return super()._train(case, variant, is_one_batch)
        if variant not in self._shared:
            self._shared[variant] = super()._train(case, variant, is_one_batch), itertools.count()
        train, count = self._shared[variant]
        return lambda batches, index: train(batches, next(count))

    def _trainee(self, case: Case):
        rounds = Rounds.of(self.settings, case)
        if "peers" not in self._shared:
            self._shared["peers"] = fresh_trainee(rounds, self.device, 0.1)
        return self._shared["peers"]

    def _leave_out(self, case: Case, variant: str) -> None:
        if not names.is_peer(variant):
            return
        if not self.settings.is_gpu:
            raise Absent("takes too long on a CPU; see the round")
        if variant != peer_of(self.settings):
            raise Absent(f"{peer_of(self.settings)} is quicker here")

    def share(self, case: Case) -> float:
        return 1.0

    def _is_checked(self, case: Case) -> bool:
        return False
