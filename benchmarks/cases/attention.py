"""Packed attention against SDPA and the written-out form on the padded batch.

Padded variants get inputs that are padded already, so they pay for their padding alone. Bytes per
token and feature: forward reads three and writes one, backward reads four and writes three.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, SITE, Absent, Cost, Differentiable, P, Variant
from benchmarks.harness.shapes import BOTH, FORWARD, Case, cases
from benchmarks.peers.optional import flash_attention, torch_varlen
from benchmarks.peers.torch_ops import (
    SDPA_BACKENDS,
    attention_eager,
    attention_named,
    attention_sdpa,
    eager_or_compiled,
)
from sbrrt_fast.ops.attention import attention

BYTES = {"fp32": 4, "bf16": 2}
PLAIN = "no dropout"


class Layout:
    """Where the tokens of a packed batch are in the padded one."""

    def __init__(self, case: Case, device: torch.device):
        self.num_heads = case.config.num_attention_heads
        lengths = torch.tensor(case.lengths, device=device)
        self.cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        self.max_length = max(case.lengths)
        self.rows = torch.arange(len(lengths), device=device)
        self.mask = torch.arange(self.max_length, device=device) < lengths[:, None]

    def pad(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] -> [sequence, length, hidden]."""
        out = x.new_zeros(*self.mask.shape, x.shape[1])
        out[self.mask] = x
        return out

    def unpad(self, x: Tensor) -> Tensor:
        return x[self.mask]

    def padded(self, function) -> Variant:
        def run(inputs: list[Tensor], p: float) -> Tensor:
            q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in inputs)
            out = function(q, k, v, self.mask[:, None, None, :], p)
            return out.transpose(1, 2).flatten(2)

        return Variant(run, prepare=self.pad, restore=self.unpad)


class Attention(Differentiable):
    """With dropout on the probabilities; ``no dropout`` is an option of the joint round."""

    name = "attention"
    variants = (
        *BACKENDS, "eager", "sdpa", *SDPA_BACKENDS, "compile", "flash-attn", "torch varlen",
    )  # fmt: skip

    def cases(self):
        for case in cases(self.settings):
            yield case
            if case.batch == "round" and case.part != BOTH:
                yield replace(case, option=PLAIN)

    def calls(self, case: Case, variant: str, num_sets: int):
        self.dropout = 0.0 if case.option == PLAIN else P
        return super().calls(case, variant, num_sets)

    def tensors(self, case: Case) -> list[Tensor]:
        hidden = case.config.hidden_size
        fused = torch.randn(case.num_tokens, 3 * hidden, device=self.device)
        return list(fused.to(case.torch_dtype).split(hidden, dim=1))

    def ours(self, case: Case, backend: str) -> Variant:
        layout, rng = Layout(case, self.device), self.rng
        batch = (layout.cu_seqlens, layout.max_length, layout.num_heads)

        def run(inputs: list[Tensor], p: float) -> Tensor:
            return attention(*inputs, *batch, p, rng, SITE, layout.rows, 512, backend=backend)

        return Variant(run)

    def peer(self, case: Case, name: str) -> Variant:
        layout = Layout(case, self.device)
        if name in ("flash-attn", "torch varlen"):
            return self._varlen(case, name, layout)
        if name in SDPA_BACKENDS and not self.settings.is_gpu:
            raise Absent("is a GPU's; what a CPU has is under sdpa")
        if name in SDPA_BACKENDS:
            return layout.padded(attention_named(name))
        if name == "sdpa":
            return layout.padded(attention_sdpa)
        return layout.padded(eager_or_compiled(name, attention_eager, self.settings, case))

    def _varlen(self, case: Case, name: str, layout: Layout) -> Variant:
        if name == "torch varlen" and self.dropout:
            raise Absent("has no dropout")
        get = flash_attention if name == "flash-attn" else torch_varlen
        function, ends = get(self.device, case.torch_dtype), layout.cu_seqlens

        def run(inputs: list[Tensor], p: float) -> Tensor:
            q, k, v = (x.unflatten(1, (layout.num_heads, -1)) for x in inputs)
            longest = (layout.max_length, layout.max_length)
            options = {"dropout_p": p} if name == "flash-attn" else {}
            return function(q, k, v, ends, ends, *longest, **options).flatten(1)

        return Variant(run)

    def cost(self, case: Case) -> Cost:
        hidden, both = case.config.hidden_size, case.part == BOTH
        size = case.num_tokens * hidden * BYTES[case.dtype]
        products = 2.0 * hidden * sum(length**2 for length in case.lengths)
        if case.part == FORWARD:
            return Cost(4 * size, 2 * products)
        return Cost((7 + 4 * both) * size, (5 + 2 * both) * products)
