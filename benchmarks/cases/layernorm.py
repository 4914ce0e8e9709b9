"""LN(residual + dropout(x + bias)) at a round's sizes, against what one writes in torch.

Bytes per element: forward reads x and the residual and writes y (12 in fp32, 10 in bf16);
backward reads grad, x and the residual and writes two gradients (20 and 16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, SITE, Cost, Differentiable, Variant
from benchmarks.harness.shapes import BACKWARD, BOTH, FORWARD, Case
from benchmarks.peers.optional import apex_layernorm, liger_layernorm
from benchmarks.peers.torch_ops import eager_or_compiled
from sbrrt_fast.ops.layernorm import dropout_add_layernorm

EPS = 1e-12
BYTES = {("fp32", FORWARD): 12, ("fp32", BACKWARD): 20, ("fp32", BOTH): 32,
         ("bf16", FORWARD): 10, ("bf16", BACKWARD): 16, ("bf16", BOTH): 26}  # fmt: skip


def eager(x, bias, residual, weight, shift, p):
    update = F.dropout(x + bias.to(x.dtype), p, p > 0)
    return F.layer_norm(residual + update, weight.shape, weight, shift, EPS)


def with_norm(norm):
    """Somebody else's LayerNorm, with torch's dropout and sum around it."""

    def run(inputs: list[Tensor], p: float) -> Tensor:
        x, bias, residual, weight, shift = inputs
        update = F.dropout(x + bias.to(x.dtype), p, p > 0)
        return norm(residual + update, weight, shift, EPS)

    return Variant(run)


class LayerNorm(Differentiable):
    name = "dropout_add_layernorm"
    variants = (*BACKENDS, "eager", "compile", "liger", "apex")

    def tensors(self, case: Case) -> list[Tensor]:
        hidden = case.config.hidden_size
        x, residual = torch.randn(2, case.num_tokens, hidden, device=self.device)
        bias, weight, shift = torch.randn(3, hidden, device=self.device)
        return [x.to(case.torch_dtype), bias, residual, weight, shift]

    def peer(self, case: Case, name: str) -> Variant:
        if name in ("liger", "apex"):
            get = liger_layernorm if name == "liger" else apex_layernorm
            return with_norm(get(self.device))
        function = eager_or_compiled(name, eager, self.settings, case)
        return Variant(lambda inputs, p: function(*inputs, p))

    def ours(self, case: Case, backend: str) -> Variant:
        rng = self.rng
        offsets = torch.arange(case.num_tokens, device=self.device) * case.config.hidden_size

        def run(inputs: list[Tensor], p: float) -> Tensor:
            dropout = (EPS, p, rng, SITE, offsets)
            return dropout_add_layernorm(*inputs, *dropout, backend=backend)

        return Variant(run)

    def cost(self, case: Case) -> Cost:
        return Cost(BYTES[case.dtype, case.part] * case.num_tokens * case.config.hidden_size)
