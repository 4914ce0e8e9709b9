"""dropout_add_layernorm's CUDA kernels on the CPU: copies, a gradient in two summands, limits."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu import CudaError
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
    expected = kernels.backward(grad=grad + product.to(grad.dtype))
    for mine, other in zip(kernels.backward(product=product), expected, strict=True):
        assert torch.equal(mine, other)


def test_without_weight_gradients_the_others_are_the_same():
    kernels = kernels_of("primes")
    expected = kernels.backward()[:2]
    for mine, other in zip(kernels.backward(need_weight_grads=False), expected, strict=True):
        assert torch.equal(mine, other)


def test_what_no_kernel_takes_is_refused():
    with pytest.raises(CudaError, match="returned error 1"):
        LayerNormKernels(LayerNormCase((2, 2049, F32, F32, 0.1, "dense"))).forward()
    with pytest.raises(CudaError, match="returned error 1"):
        LayerNormKernels(LayerNormCase((2, 8, F32, BF16, 0.1, "dense"))).forward()
