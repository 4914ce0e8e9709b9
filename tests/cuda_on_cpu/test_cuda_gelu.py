"""bias_gelu's CUDA kernels, executed on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

from sbrrt_fast.ops.gelu import bias_gelu_reference
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    assert_same_bits_in_any_order,
    column_sums,
    dense_rows,
    num_row_blocks,
    unwritten,
    with_stride,
)
from tests.ops.op_checks import BF16, F32, assert_as_good_as_stock, float_tangent, gradients
from tests.ops.test_gelu import SAMPLES, Case

F16 = torch.float16
KERNELS = {
    f"{dtype}, {features} features": (37, features, dtype, 1.0, "dense")
    for dtype in (F32, BF16, F16)
    for features in (264, 131)
}
MORE = {"more rows than blocks hold": (16391, 3, F32, 1.0, "dense")}
all_samples = SAMPLES | KERNELS | MORE
samples = pytest.mark.parametrize("sample", all_samples.values(), ids=all_samples.keys())
kernels = pytest.mark.parametrize("sample", KERNELS.values(), ids=KERNELS.keys())


def forward(x, bias, seed=0):
    out, x = unwritten(*x.shape, dtype=x.dtype), dense_rows(x)
    arguments = (*x.shape, x.dtype, *with_stride(x), bias, *with_stride(out))
    library("gelu").call("forward", *arguments, seed=seed)
    return out


def change(grad, x, bias, need_weight_grads, seed=0):
    """Backward, or with the tangent for the gradient and no sums the tangent."""
    out, x, grad = unwritten(*x.shape, dtype=x.dtype), dense_rows(x), dense_rows(grad)
    blocks = num_row_blocks("gelu", len(x))
    partial = unwritten(blocks, x.shape[1]) if need_weight_grads else None
    rows = *with_stride(x), *with_stride(grad), bias, *with_stride(out)
    library("gelu").call("grad", *x.shape, x.dtype, *rows, partial, seed=seed)
    return [out, column_sums(partial, seed)] if need_weight_grads else [out]


@samples
def test_values(sample):
    case = Case(sample)
    exact = bias_gelu_reference(*case.exact_inputs())
    assert_as_good_as_stock(forward(*case.inputs), bias_gelu_reference(*case.inputs), exact)


@samples
def test_gradients(sample):
    case = Case(sample)
    exact = gradients(bias_gelu_reference, case.exact_inputs(), case.grad.double())
    stock = gradients(bias_gelu_reference, case.inputs, case.grad)
    for triple in zip(change(case.grad, *case.inputs, True), stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


@samples
def test_tangents(sample):
    case, results = Case(sample), []
    for x, bias in (case.inputs, case.exact_inputs()):
        tangent = case.grad.to(x.dtype)
        function = lambda x, bias=bias: bias_gelu_reference(x, bias)  # noqa: E731
        results.append(float_tangent(function, [x], [tangent]))
    assert_as_good_as_stock(*change(case.grad, *case.inputs, False), *results)


def test_accurate_everywhere():
    """As the C++ op's: two ulp of the argument's or the value's size, on a grid."""
    t = torch.linspace(-14, 14, 20_003)[None]
    zero = torch.zeros(t.shape[1])
    exact = t.double() * torch.special.erfc(-t.double() / math.sqrt(2)) / 2
    bound = 2.4e-7 * t.double().abs().clamp(max=1.0) + 1.2e-7 * exact.abs() + 1e-38
    assert ((forward(t, zero) - exact).abs() <= bound).all()
    (slope,) = change(torch.ones_like(t), t, zero, False)
    density = torch.exp(-t.double().square() / 2) / math.sqrt(2 * math.pi)
    exact = torch.special.erfc(-t.double() / math.sqrt(2)) / 2 + t.double() * density
    assert (slope - exact).abs().max() < 4.8e-7


def test_extreme_arguments():
    x = torch.tensor([[math.inf, 3e38, 88.0, -88.0, -3e38, 0.0, -0.0, 1e-40, math.nan]])
    got = forward(x, torch.zeros(9))[0]
    assert got[:7].tolist() == [math.inf, *x[0, 1:3].tolist(), 0.0, 0.0, 0.0, 0.0]
    assert 0 <= got[7] <= 1e-40
    assert got[8].isnan()
    (slope,) = change(torch.ones(1, 9), x, torch.zeros(9), False)
    assert slope[0, 1:7].tolist() == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5]


@kernels
def test_same_bits_in_any_order_of_threads(sample):
    case = Case(sample)
    assert_same_bits_in_any_order(
        lambda seed: [
            forward(*case.inputs, seed),
            *change(case.grad, *case.inputs, True, seed),
            *change(case.grad, *case.inputs, False, seed),
        ]
    )


@pytest.mark.parametrize(("height", "width"), [(0, 5), (1, 1), (3, 64), (67, 33)])
def test_column_sums(height, width):
    x = torch.randn(height, width)
    assert torch.allclose(column_sums(x).double(), x.double().sum(0), rtol=1e-6, atol=1e-5)


def test_column_sums_of_several_gradients():
    """Each goes where it is wanted; parts end within a block's columns."""
    x, (first, third) = torch.randn(67, 3 * 33), (unwritten(33), unwritten(33))
    library("column_sums").call("sums", x, 67, 33, 3, first, None, third)
    assert torch.equal(torch.cat([first, third]), column_sums(x)[[*range(33), *range(66, 99)]])
