"""Whole SBRRT rounds: this package against Hugging Face's BertModel and our reference.

    python -m pytest benchmarks/bench_round.py --benchmark-only

Every variant trains on the same rounds, one after the other in turn. Before that, with dropout
off, its task losses of a first round are those of our reference in float32, and so is the size of
our variants' R_s.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import pytest
import torch

from benchmarks.measure import Budget, WrongResult
from benchmarks.ops import Absent, Benchmark
from benchmarks.rounds import NUM_ROUNDS, SBRRT, Rounds, build_model, build_ours
from benchmarks.shapes import Case, models
from sbrrt_fast.config import BregmanConfig, RunConfig, SmartConfig

PEERS = {
    "hf fp32 eager": ("fp32", "eager"),
    "hf fp32 sdpa": ("fp32", "sdpa"),
    "hf bf16 eager": ("bf16", "eager"),
    "hf bf16 sdpa": ("bf16", "sdpa"),
    "hf bf16 compile": ("bf16", "sdpa", "default"),
    "hf bf16 graphs": ("bf16", "sdpa", "graphs"),
}
OURS = (
    "reference fp32", "fast fp32", "fast bf16", "fast bf16 joint", "plain bf16", "fast bf16 triton",
    "fast bf16 cuda",
)  # fmt: skip
FAST = "fast bf16"
SLOW_ON_CPU = ("hf bf16 sdpa", FAST, "fast bf16 joint")  # all that bert-base is timed with there
QUICK = ("hf fp32 eager", "reference fp32", "plain bf16", *SLOW_ON_CPU)  # on a CPU
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}


def config_of(name: str) -> RunConfig:
    """The run behind one of our variants."""
    kind, precision, *rest = name.split()
    config = replace(SBRRT, precision=precision)
    if kind == "reference":
        config = replace(config, backend="reference")
    if kind == "plain":
        config = replace(config, smart=SmartConfig(), bregman=BregmanConfig())
    if rest == ["joint"]:
        config = replace(config, round=replace(config.round, update="joint"))
    if rest and rest[0] in ("triton", "cuda"):
        config = replace(config, backend=rest[0])
    return config


def build(name: str, rounds: Rounds, device: torch.device, p: float = 0.1):
    """A function of (batches, index) that trains one round of a variant; its terms."""
    if name in OURS:
        return build_ours(rounds.encoder(), config_of(name), device, p).round
    try:
        from benchmarks.peers.hugging_face import Form, HuggingFaceRound
    except ModuleNotFoundError as error:
        raise Absent(f"{error.name} is not installed") from None
    model = build_model(rounds.encoder(), SBRRT, device, p)
    peer = HuggingFaceRound(model, SBRRT, Form(*PEERS[name]), NUM_ROUNDS)
    return lambda batches, index: peer.round(batches)


class Round(Benchmark):
    """One round per call; not from a graph, as a round also works on the host."""

    name, graph = "round", False
    variants = (*PEERS, *OURS)

    def cases(self):
        for model in models(self.settings):
            for batch in ["round", "round-32"] if self.settings.is_gpu else ["round"]:
                yield Case(model, batch, "", "train")

    def budget(self, case: Case) -> Budget:
        budget = self.settings.round_budget
        if case.model == "minilm" or self.settings.is_gpu:
            return budget
        return replace(budget, min_samples=3, max_samples=3, warm_ups=1)

    def tokens(self, case: Case) -> int:
        """The mean of the rounds that are timed."""
        rounds = [self._rounds(case)[i] for i in range(10)]
        return round(sum(b.tokens.num_tokens for found in rounds for b in found) / len(rounds))

    def calls(self, case: Case, variant: str, num_sets: int):
        self._leave_out(case, variant)
        rounds = self._rounds(case)
        if self._is_checked(case):
            self._check(variant, rounds)
        train, counter = build(variant, rounds, self.device), itertools.count()

        def call():
            index = next(counter)
            return train(rounds[index], index)

        return [call]

    def _leave_out(self, case: Case, variant: str) -> None:
        """Raises Absent."""
        compiles = PEERS.get(variant, ("", "", "no"))[-1]
        if self.settings.quick and compiles in ("default", "graphs"):
            raise Absent("a quick run compiles nothing")
        if self.settings.quick and not self.settings.is_gpu and variant not in QUICK:
            raise Absent("a quick run leaves it out")
        needs_gpu = compiles == "graphs" or variant.split()[-1] in ("triton", "cuda")
        if needs_gpu and not self.settings.is_gpu:
            raise Absent("needs a GPU")
        is_slow = case.model != "minilm" and not self.settings.is_gpu
        if is_slow and variant not in SLOW_ON_CPU:
            raise Absent(f"{case.model} takes too long on a CPU; see minilm")

    def _is_checked(self, case: Case) -> bool:
        return case.model == "minilm" or self.settings.is_gpu

    def _rounds(self, case: Case) -> Rounds:
        if getattr(self, "_known", (None,))[0] != case:
            self._known = case, Rounds(self.settings, case)
        return self._known[1]

    @cached_property
    def _expected(self) -> dict[str, float]:
        """The reference's terms of the first round, without dropout."""
        rounds = self._known[1]
        terms = build("reference fp32", rounds, self.device, 0.0)(rounds[0], 0)
        return {name: value.item() for name, value in terms.items()}

    def _check(self, variant: str, rounds: Rounds) -> None:
        terms = build(variant, rounds, self.device, 0.0)(rounds[0], 0)
        precision = variant.split()[1]
        for name, expected in self._expected.items():
            found = terms[name].item() if name in terms else None
            if name.endswith("/loss") and not abs(found / expected - 1) < TOLERANCE[precision]:
                raise WrongResult(f"{variant}: {name} is {found:.5g}, not {expected:.5g}")
            if name.endswith("/smart") and found is not None:
                self._check_smart(variant, name, found, expected)

    def _check_smart(self, variant: str, name: str, found: float, expected: float) -> None:
        """A peer's R_s need only be there: it moves word embeddings, before their LayerNorm."""
        is_right = expected / 2 < found < 2 * expected if variant in OURS else 0 < found < 1e3
        if not is_right:
            raise WrongResult(f"{variant}: {name} is {found:.3g}, the reference's {expected:.3g}")


@pytest.mark.compares(kind=Round)
def test_round(measured, case, variant):
    measured(case, variant)
