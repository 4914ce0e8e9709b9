"""dropout_add_layernorm's CUDA kernels on the CPU: copies, a gradient in two summands, limits."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu import CudaError
from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.cuda_on_cpu.cuda_rows import unwritten
from tests.cuda_on_cpu.kernels.layernorm import LayerNormKernels
from tests.ops.cases import OPS
from tests.ops.cases.layernorm import LayerNormCase
from tests.ops.op_checks import BF16, F32

SAMPLES = OPS["dropout_add_layernorm"].table("cuda_on_cpu")


def kernels_of(name: str) -> LayerNormKernels:
    return LayerNormKernels(LayerNormCase(SAMPLES[name]))


@pytest.mark.parametrize("name", ["narrow, torch.bfloat16 and torch.float32", "primes"])
def test_bfloat16_copies(name):
    kernels = kernels_of(name)
    for run in (lambda low: kernels.forward(low)[0], kernels.jvp):
        low = unwritten(*kernels.case.inputs[2].shape, dtype=BF16, gap=8)
        out = run(low)
        assert torch.equal(low, out.to(BF16))
        assert torch.as_strided(low, (len(low), 8), low.stride(), low.shape[1])[:-1].isnan().all()


@pytest.mark.parametrize("name", ["wide, torch.float16 and torch.float32", "primes in a half"])
def test_the_gradient_may_come_in_two_summands(name):
    kernels = kernels_of(name)
    grad, x = kernels.case.grad, kernels.case.inputs[0]
    product = torch.randn(grad.shape).to(x.dtype)
    bounds = _bounds(0, len(x))
    expected = kernels.backward(bounds, grad + product.to(grad.dtype))
    for mine, other in zip(kernels.backward(bounds, product=product), expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("num_tangents", [1, 3, None])
@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "no rows"])
def test_forward_and_tangent_in_one_launch(name, num_tangents):
    """The bits of the two launches, for the last rows or all of them."""
    kernels = kernels_of(name)
    num_rows = len(kernels.case.inputs[0])
    count = min(num_tangents or num_rows, num_rows)
    size = kernels.case.inputs[0].shape
    whole_low, low = (unwritten(n, size[1], dtype=BF16) for n in (num_rows, count))
    *forward, tangent = kernels.forward(num_tangents=count, low_tangent=low)
    for mine, other in zip(forward, kernels.forward()[:3], strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(tangent, kernels.jvp(whole_low)[num_rows - count :])
    assert torch.equal(low, whole_low[num_rows - count :])


@pytest.mark.parametrize("name", OPS["dropout_add_layernorm"].orders)
def test_orders_of_threads_do_not_change_the_tangents(name):
    case = LayerNormCase(SAMPLES[name])
    first = LayerNormKernels(case).forward(num_tangents=3)
    for seed in range(1, NUM_SEEDS + 1):
        found = LayerNormKernels(case, seed).forward(num_tangents=3)
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), seed


def _bounds(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("gap", [0, 1, 8])
@pytest.mark.parametrize("name", ["primes", "512 tokens", "wide, torch.bfloat16 and torch.float32"])
def test_sums_of_segments(name, gap):
    """Empty ones at both ends and in between; of one row, of more than a block has at a time."""
    kernels = kernels_of(name)
    num_rows = len(kernels.case.inputs[0])
    bounds = _bounds(0, 0, 1, 1, 4, num_rows - 1, num_rows, num_rows)
    dx, dresidual, sums = kernels.backward(bounds, gap=gap)
    rounding = 2**-7 if gap == 1 else 0.0  # not in multiples of 16 bytes: another kernel
    for mine, other in zip(kernels.backward()[:2], (dx, dresidual), strict=True):
        torch.testing.assert_close(mine, other, rtol=rounding, atol=rounding / 1024)
    assert not sums.isnan().any() and not sums[bounds.diff() == 0].any()
    whole = kernels.backward(_bounds(0, num_rows))[2]
    torch.testing.assert_close(sums.sum(0), whole[0], rtol=2e-5, atol=2e-4)
    for i, (begin, end) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
        shift = kernels.case.grad[begin:end].float().sum(0)
        torch.testing.assert_close(sums[i, 2], shift, rtol=1e-5, atol=1e-5)


def test_bounds_outside_the_rows_are_not_followed():
    kernels = kernels_of("primes")
    expected = kernels.backward(_bounds(0, 37))
    for mine, other in zip(kernels.backward(_bounds(-5, 99)), expected, strict=True):
        assert torch.equal(mine, other)


def test_what_no_kernel_takes_is_refused():
    with pytest.raises(CudaError, match="returned error 1"):
        LayerNormKernels(LayerNormCase((2, 2049, F32, F32, 0.1, "dense"))).forward()
    with pytest.raises(CudaError, match="returned error 1"):
        LayerNormKernels(LayerNormCase((2, 8, F32, BF16, 0.1, "dense"))).forward()
