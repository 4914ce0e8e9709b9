"""gelu(x + bias) at a round's sizes: C++ against what one writes in torch.

Bytes per element: forward reads x and writes y (8 in fp32, 4 in bf16); backward reads grad and x
and writes a gradient (12 and 6). ``stock_folded`` leaves the bias to the matrix product before it,
which is free there, so it is the harder rival.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.op_shapes import DTYPES, SHAPES, relative_difference
from sbrrt_fast.ops.gelu import bias_gelu


def cpp(x, bias):
    return bias_gelu(x, bias, backend="cpu")


def stock(x, bias):
    return F.gelu(x + bias.to(x.dtype))


def stock_folded(x, bias):
    return F.gelu(x)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("part", ["forward", "backward", "both"])
@pytest.mark.parametrize("variant", [cpp, stock, stock_folded], ids=lambda f: f.__name__)
def test_gelu(benchmark, variant, part, dtype, shape):
    tokens, _, features = SHAPES[shape]
    x = torch.randn(tokens, features).to(DTYPES[dtype]).requires_grad_()
    bias = torch.randn(features)
    if variant is stock_folded:
        bias.zero_()
    bias.requires_grad_()
    inputs = [x] if variant is stock_folded else [x, bias]
    grad = torch.randn_like(x)
    y, expected = variant(x, bias), stock(x.double(), bias.double())
    assert relative_difference(y, expected) < 1e-2
    found = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    exact = torch.autograd.grad(expected, inputs, grad.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert relative_difference(ours, theirs) < 3e-2
    benchmark.group = f"{shape} {dtype} {part}"
    if part == "forward":
        with torch.no_grad():
            benchmark(variant, x, bias)
    elif part == "backward":
        benchmark(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True))
    else:
        benchmark(lambda: torch.autograd.grad(variant(x, bias), inputs, grad))
