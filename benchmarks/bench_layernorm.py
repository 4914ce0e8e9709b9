"""LN(residual + dropout(x + bias)) at a round's sizes: C++ against what one writes in torch.

Bytes per element: forward reads x and the residual and writes y (12 in fp32, 10 in bf16);
backward reads grad, x and the residual and writes two gradients (20 and 16).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.op_shapes import DTYPES, EPS, RNG, SHAPES, SITE, P, relative_difference
from sbrrt_fast.ops.layernorm import dropout_add_layernorm


def cpp(x, bias, residual, weight, shift, p):
    offsets = torch.arange(x.shape[0]) * x.shape[1]
    return dropout_add_layernorm(
        x, bias, residual, weight, shift, EPS, p, RNG, SITE, offsets, backend="cpu"
    )


def stock(x, bias, residual, weight, shift, p):
    update = F.dropout(x + bias.to(x.dtype), p)
    return F.layer_norm(residual + update, weight.shape, weight, shift, EPS)


def make_inputs(shape: str, dtype: str) -> list[torch.Tensor]:
    tokens, hidden, _ = SHAPES[shape]
    x, residual = torch.randn(2, tokens, hidden)
    leaves = [x.to(DTYPES[dtype]), *torch.randn(1, hidden), residual, *torch.randn(2, hidden)]
    return [leaf.requires_grad_() for leaf in leaves]


def check(variant, inputs):
    """Without dropout, where the variants draw alike."""
    found, expected = variant(*inputs, 0.0), stock(*inputs, 0.0)
    assert relative_difference(found, expected) < 1e-2
    grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        assert relative_difference(ours, theirs) < 3e-2


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("part", ["forward", "backward", "both"])
@pytest.mark.parametrize("variant", [cpp, stock], ids=lambda f: f.__name__)
def test_layernorm(benchmark, variant, part, dtype, shape):
    inputs = make_inputs(shape, dtype)
    check(variant, inputs)
    benchmark.group = f"{shape} {dtype} {part}"
    if part == "forward":
        with torch.no_grad():
            benchmark(variant, *inputs, P)
        return
    y = variant(*inputs, P)
    grad = torch.randn_like(y)
    if part == "backward":
        benchmark(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True))
    else:
        benchmark(lambda: torch.autograd.grad(variant(*inputs, P), inputs, grad))
