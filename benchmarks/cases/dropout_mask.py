"""Dropout masks of hidden states, against torch.dropout of ones. A mask has 4 bytes per element."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, SITE, Cost, P, Plain
from benchmarks.harness.measure import WrongResult
from benchmarks.harness.shapes import FORWARD, RNG_SEED, Case, cases
from sbrrt_fast.ops.dropout import dropout_mask


class DropoutMask(Plain):
    name = "dropout_mask"
    variants = (*BACKENDS, "reference", "eager")

    def cases(self):
        return cases(self.settings, ["fp32"], [FORWARD], ["task", "round"])

    def tensors(self, case: Case) -> tuple:
        width = case.config.hidden_size
        rng = torch.tensor(RNG_SEED, device=self.device)
        return torch.arange(case.num_tokens, device=self.device) * width, width, rng

    def function(self, case: Case, name: str, backend: str | None) -> Callable:
        if name == "eager":
            ones = torch.ones(case.num_tokens, case.config.hidden_size, device=self.device)
            return lambda offsets, width, rng: torch.dropout(ones, P, train=True)
        return lambda offsets, width, rng: dropout_mask(offsets, width, P, rng, SITE, backend=name)

    def check(self, case: Case, name: str, found: Tensor, tensors: tuple) -> None:
        if name == "eager":  # other bits, the same distribution
            is_right = abs((found != 0).double().mean().item() - (1 - P)) < 0.02
        else:
            offsets, width, rng = tensors
            expected = dropout_mask(offsets, width, P, rng, SITE, backend="reference")
            is_right = torch.equal(found, expected)
        if not is_right:
            raise WrongResult(f"{self.name} {case} {name}: not the mask it should be")

    def cost(self, case: Case) -> Cost:
        return Cost(4.0 * case.num_tokens * case.config.hidden_size)


@pytest.mark.compares(kind=DropoutMask)
def test_dropout_mask(measured, case, variant):
    measured(case, variant)
