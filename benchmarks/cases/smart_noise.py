"""SMART's noise on a batch's tokens, against torch.randn. It writes 4 bytes per element."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, SITE, Cost, Plain
from benchmarks.harness.measure import WrongResult
from benchmarks.harness.shapes import FORWARD, RNG_SEED, Case, cases
from sbrrt_fast.ops.smart_noise import smart_noise


class SmartNoise(Plain):
    """``eager`` draws other numbers of the same distribution, which depend on their order."""

    name = "smart_noise"
    variants = (*BACKENDS, "reference", "eager")

    def cases(self):
        return cases(self.settings, ["fp32"], [FORWARD], ["task", "round"])

    def tensors(self, case: Case) -> tuple:
        width = case.config.hidden_size
        rng = torch.tensor(RNG_SEED, device=self.device)
        return torch.arange(case.num_tokens, device=self.device) * width, width, rng

    def function(self, case: Case, name: str, backend: str | None) -> Callable:
        if name == "eager":
            return lambda offsets, width, rng: torch.randn(
                len(offsets), width, device=offsets.device
            )
        return lambda offsets, width, rng: smart_noise(offsets, width, rng, SITE, backend=name)

    def check(self, case: Case, name: str, found: Tensor, tensors: tuple) -> None:
        if name == "eager":
            is_right = abs(found.double().var().item() - 1) < 0.02
        else:
            offsets, width, rng = tensors
            expected = smart_noise(offsets, width, rng, SITE, backend="reference")
            is_right = torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        if not is_right:
            raise WrongResult(f"{self.name} {case} {name}: not the noise it should be")

    def cost(self, case: Case) -> Cost:
        return Cost(4.0 * case.num_tokens * case.config.hidden_size)


@pytest.mark.compares(kind=SmartNoise)
def test_smart_noise(measured, case, variant):
    measured(case, variant)
