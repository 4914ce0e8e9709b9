"""Rounds of Hugging Face's BertModel under torch.compile, beside ours.

They have a case of their own, as compiling takes minutes. The encoder with its pooling is compiled
for sizes that may change, and warmed up until all rounds run without compiling; the heads, other
for each task, are not. Without dropout it would be compiled once more, so its losses are checked
with dropout: they need only be near those of the same round that is not compiled.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import round_variants as names
from benchmarks.cases.round import Round
from benchmarks.harness.benchmark import Absent
from benchmarks.harness.settings import NUM_ROUNDS
from benchmarks.harness.shapes import Case, models
from benchmarks.peers import compiled

NEAR = 0.15  # of a loss, under another dropout mask


class CompiledRound(Round):
    variants = (*names.both(names.FAST), *names.COMPILED, *names.GRAPHS)

    def __init__(self, settings):
        super().__init__(settings)
        self._refusals: dict[str, object] = {}

    def cases(self):
        for model in models(self.settings) if self.settings.is_gpu else ["minilm"]:
            yield Case(model, "round", "", "train", "compiled")

    def share(self, case: Case) -> float:
        return 1.0 / (2 if case.model == "minilm" and self.settings.is_gpu else 1)

    def calls(self, case: Case, variant: str, num_sets: int):
        calls = super().calls(case, variant, num_sets)
        if not names.is_peer(variant):
            return calls
        compiled.settle(calls[0], NUM_ROUNDS)
        self._refusals[variant] = watched = compiled.Watched(calls[0])
        return [watched]

    def refusal(self, variant: str) -> str:
        watched = self._refusals.get(variant)
        return watched.refusal if watched else ""

    def _check(self, case: Case, variant: str, is_one_batch: bool) -> None:
        if not names.is_peer(variant):
            return super()._check(case, variant, is_one_batch)
        eager = names.BF16_PEER + names.JOINT * names.is_joint(variant)
        expected = self.once(eager, case, lambda: self._terms(case, eager, is_one_batch, 0.1))
        terms = self._terms(case, variant, is_one_batch, 0.1)
        return self._check_terms(variant, terms, expected, NEAR)

    def _leave_out(self, case: Case, variant: str) -> None:
        if self.settings.quick:
            raise Absent("a quick run compiles nothing")
        if variant in names.GRAPHS and not self.settings.is_gpu:
            raise Absent("needs a GPU")
        super()._leave_out(replace(case, option=""), variant)
