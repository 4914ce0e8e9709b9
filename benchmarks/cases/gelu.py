"""gelu(x + bias) at a round's sizes, against what one writes in torch.

Bytes per element: forward reads x and writes y (8 in fp32, 4 in bf16); backward reads grad and x
and writes a gradient (12 and 6). ``eager folded`` leaves the bias to the matrix product before it,
which is free there, so it is the harder rival.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, Cost, Differentiable, Variant
from benchmarks.harness.shapes import BACKWARD, BOTH, FORWARD, Case
from benchmarks.peers.torch_ops import eager_or_compiled
from sbrrt_fast.ops.gelu import bias_gelu

BYTES = {("fp32", FORWARD): 8, ("fp32", BACKWARD): 12, ("fp32", BOTH): 20,
         ("bf16", FORWARD): 4, ("bf16", BACKWARD): 6, ("bf16", BOTH): 10}  # fmt: skip


def eager(x, bias):
    return F.gelu(x + bias.to(x.dtype))


class BiasGelu(Differentiable):
    name, dropout = "bias_gelu", 0.0
    variants = (*BACKENDS, "eager", "eager folded", "compile")

    def tensors(self, case: Case) -> list[Tensor]:
        features = case.config.intermediate_size
        x = torch.randn(case.num_tokens, features, device=self.device)
        bias = torch.randn(features, device=self.device)
        return [x.to(case.torch_dtype), bias * (not self._is_folded)]

    def exact(self, case: Case, inputs: list[Tensor], p: float) -> Tensor:
        return eager(*inputs)

    def ours(self, case: Case, backend: str) -> Variant:
        return Variant(lambda inputs, p: bias_gelu(*inputs, backend=backend))

    def peer(self, case: Case, name: str) -> Variant:
        if name == "eager folded":
            return Variant(_folded, num_leaves=1)
        function = eager_or_compiled(name, eager, self.settings, case)
        return Variant(lambda inputs, p: function(*inputs))

    def calls(self, case: Case, variant: str, num_sets: int):
        self._is_folded = variant == "eager folded"
        return super().calls(case, variant, num_sets)

    def cost(self, case: Case) -> Cost:
        return Cost(BYTES[case.dtype, case.part] * case.num_tokens * case.config.intermediate_size)


def _folded(inputs: list[Tensor], p: float) -> Tensor:
    return F.gelu(inputs[0])
