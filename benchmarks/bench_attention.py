"""Packed attention at a round's sizes: C++ against SDPA on the padded batch.

The padded variant gets inputs that are padded already, so it pays for its padding alone. Bytes per
token and feature: forward reads three and writes one, backward reads four and writes three.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.op_shapes import DTYPES, RNG, SITE, P, relative_difference
from sbrrt_fast.ops.attention import attention

# sentence lengths of a task's batch: 5 ... 40 tokens, mean near 18
LENGTHS = [12, 26, 7, 18, 33, 9, 15, 22, 5, 19, 28, 11, 17, 40, 8, 14, 16]
# times that batch, heads, head dimension: one task's batch and a joint round
SHAPES = {
    "minilm-300": (1, 12, 32),
    "minilm-600": (2, 12, 32),
    "bert-base-300": (1, 12, 64),
    "bert-base-600": (2, 12, 64),
}


class Batch:
    """Packed and padded query, key and value of the same sequences."""

    def __init__(self, shape: str, dtype: str):
        times, self.num_heads, head_dim = SHAPES[shape]
        self.lengths = torch.tensor(LENGTHS * times)
        self.cu_seqlens = F.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32)
        self.max_length = max(LENGTHS)
        self.rows = torch.arange(len(self.lengths))
        self.mask = torch.arange(self.max_length) < self.lengths[:, None]
        num_tokens, hidden = int(self.lengths.sum()), self.num_heads * head_dim
        fused = torch.randn(num_tokens, 3 * hidden).to(DTYPES[dtype])
        self.packed = [x.detach().requires_grad_() for x in fused.split(hidden, dim=1)]
        self.padded = [self.pad(x).detach().requires_grad_() for x in self.packed]

    def pad(self, x):
        out = x.new_zeros(*self.mask.shape, x.shape[1])
        out[self.mask] = x
        return out

    def cpp(self, p):
        batch = (self.cu_seqlens, self.max_length, self.num_heads)
        return attention(*self.packed, *batch, p, RNG, SITE, self.rows, 512, backend="cpu")

    def padded_sdpa(self, p):
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in self.padded)
        mask = self.mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return out.transpose(1, 2).flatten(2)

    def check(self):
        """Without dropout, where the variants draw alike."""
        packed, padded = self.cpp(0.0), self.padded_sdpa(0.0)
        assert relative_difference(packed, padded[self.mask]) < 1e-2
        ours = torch.autograd.grad(packed.square().sum(), self.packed)
        stock = torch.autograd.grad(padded[self.mask].square().sum(), self.padded)
        for a, b in zip(ours, stock, strict=True):
            assert relative_difference(a, b[self.mask]) < 3e-2


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("part", ["forward", "backward", "both"])
@pytest.mark.parametrize("p", [P, 0.0], ids=["dropout", "plain"])
@pytest.mark.parametrize("variant", ["cpp", "padded_sdpa"])
def test_attention(benchmark, variant, p, part, dtype, shape):
    batch = Batch(shape, dtype)
    batch.check()
    run = getattr(batch, variant)
    inputs = batch.packed if variant == "cpp" else batch.padded
    benchmark.group = f"{shape} {dtype} {part} p={p}"
    if part == "forward":
        with torch.no_grad():
            benchmark(run, p)
        return
    y = run(p)
    grad = torch.randn_like(y)
    if part == "backward":
        benchmark(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True))
    else:
        benchmark(lambda: torch.autograd.grad(run(p), inputs, grad))
