"""The ops that draw from Philox, against torch's generator: dropout masks and SMART's noise.

Both write 4 bytes per element of a batch's hidden states. A peer draws other numbers of the same
distribution, which depend on their order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, REFERENCE, SITE, Cost, P, Plain
from benchmarks.harness.check import WrongResult
from benchmarks.harness.shapes import FORWARD, Case, cases
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.smart_noise import smart_noise


class RandomNumbers(Plain):
    """``draw`` and ``eager`` draw; ``is_distributed`` looks at what the latter drew."""

    variants = (*BACKENDS, REFERENCE, "eager")
    rtol = atol = 0.0  # from the reference

    @abstractmethod
    def draw(self, offsets: Tensor, width: int, rng: Tensor, backend: str) -> Tensor:
        """This package's numbers, by a backend."""

    @abstractmethod
    def eager(self, offsets: Tensor, width: int, rng: Tensor) -> Tensor:
        """Stock torch's numbers."""

    @abstractmethod
    def is_distributed(self, result: Tensor) -> bool:
        """Whether they are distributed as they should be."""

    def cases(self):
        return cases(self.settings, ["fp32"], [FORWARD], ["task", "round"])

    def tensors(self, case: Case) -> tuple:
        width = case.config.hidden_size
        return torch.arange(case.num_tokens, device=self.device) * width, width, self.rng

    def function(self, case: Case, name: str) -> Callable:
        return self.eager if name == "eager" else partial(self.draw, backend=name)

    def check(self, case: Case, name: str, result: Tensor, tensors: tuple) -> None:
        if name == "eager":
            is_right = self.is_distributed(result)
        else:
            expected = self.draw(*tensors, backend=REFERENCE)
            is_right = torch.allclose(result, expected, self.rtol, self.atol)
        if not is_right:
            raise WrongResult(f"{self.name} {case} {name}: not the numbers it should draw")

    def cost(self, case: Case) -> Cost:
        return Cost(4.0 * case.num_tokens * case.config.hidden_size)


class DropoutMask(RandomNumbers):
    """torch.dropout takes ones, which it reads too."""

    name = "dropout_mask"

    def tensors(self, case: Case) -> tuple:
        self._ones = torch.ones(case.num_tokens, case.config.hidden_size, device=self.device)
        return super().tensors(case)

    def draw(self, offsets, width, rng, backend) -> Tensor:
        return dropout_mask(offsets, width, P, rng, SITE, backend=backend)

    def eager(self, offsets, width, rng) -> Tensor:
        return torch.dropout(self._ones, P, train=True)

    def is_distributed(self, result: Tensor) -> bool:
        return abs((result != 0).double().mean().item() - (1 - P)) < 0.02


class SmartNoise(RandomNumbers):
    name, rtol, atol = "smart_noise", 1e-5, 1e-6

    def draw(self, offsets, width, rng, backend) -> Tensor:
        return smart_noise(offsets, width, rng, SITE, backend=backend)

    def eager(self, offsets, width, rng) -> Tensor:
        return torch.randn(len(offsets), width, device=offsets.device)

    def is_distributed(self, result: Tensor) -> bool:
        return abs(result.double().var().item() - 1) < 0.02
