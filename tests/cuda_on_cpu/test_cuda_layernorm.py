"""dropout_add_layernorm's CUDA kernels, executed on the CPU."""

from __future__ import annotations

from functools import cached_property

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask
from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.cuda_rows import (
    assert_same_bits_in_any_order,
    column_sums,
    dense_rows,
    num_row_blocks,
    unwritten,
    with_stride,
)
from tests.ops.op_checks import (
    BF16,
    F32,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
)
from tests.ops.test_layernorm import EPS, SAMPLES, Case

F16 = torch.float16
# Where no dtype decides, the shape of blocks does: rows of a warp, of four warps, of eight.
DTYPES = [(F32, F32), (BF16, F32), (F16, F32), (BF16, BF16), (F16, F16)]
WIDTHS = {"narrow": 384, "wide": 1024, "any": 37}
KERNELS = {
    f"{name}, {x} and {residual}": (5, width, x, residual, 0.1, "dense")
    for x, residual in DTYPES
    for name, width in WIDTHS.items()
}
MORE = {
    "more rows than blocks hold": (2053, 4, F32, F32, 0.1, "dense"),
    "widest vectors": (2, 2048, F16, F32, 0.1, "dense"),
    "widest": (2, 2048, F32, F32, 0.1, "dense"),
    "not a multiple of 16 bytes": (9, 388, BF16, F32, 0.1, "dense"),
}
all_samples = SAMPLES | KERNELS | MORE
samples = pytest.mark.parametrize("sample", all_samples.values(), ids=all_samples.keys())
kernels = pytest.mark.parametrize("sample", KERNELS.values(), ids=KERNELS.keys())


class CudaCase(Case):
    """A sample of the C++ op's tests, run by the CUDA launchers."""

    def call(self, function, *others, seed):
        x, bias, residual, *_ = self.inputs
        x, residual = dense_rows(x), dense_rows(residual)
        shape, dtypes = x.shape, (x.dtype, residual.dtype)
        rows = *with_stride(x), *with_stride(residual), bias
        dropout = self.p, RNG, SITE, self.offsets
        library("layernorm").call(function, *shape, *dtypes, *rows, *dropout, *others, seed=seed)

    def like(self, x, gap=0):
        return unwritten(*x.shape, dtype=x.dtype, gap=gap)

    def forward(self, seed=0, low=None):
        *_, weight, shift = self.inputs
        out = self.like(self.inputs[2])
        mean, rstd = unwritten(len(out)), unwritten(len(out))
        written = *with_stride(out), *with_stride(low), mean, rstd
        self.call("forward", weight, shift, EPS, *written, seed=seed)
        return out, mean, rstd

    @cached_property
    def statistics(self):
        return self.forward()[1:]

    def backward(self, seed=0, grad=None, product=None, need_weight_grads=True):
        x, _, residual, weight, _ = self.inputs
        width, statistics = x.shape[1], self.statistics
        dx, dresidual = self.like(x), self.like(residual)
        blocks = num_row_blocks("layernorm", len(x))
        partial = unwritten(blocks, 3 * width) if need_weight_grads else None
        grad = dense_rows(self.grad if grad is None else grad)
        read = *with_stride(grad), *with_stride(product), weight, *statistics
        written = *with_stride(dx), *with_stride(dresidual), partial
        self.call("backward", *read, *written, seed=seed)
        if not need_weight_grads:
            return dx, dresidual
        return dx, dresidual, *column_sums(partial, seed).split(width)

    def jvp(self, seed=0, low=None):
        out, statistics = self.like(self.inputs[2]), self.statistics
        tangents = [value for t in self.tangents for value in with_stride(t)]
        written = *with_stride(out), *with_stride(low)
        self.call("jvp", *tangents, self.inputs[3], *statistics, *written, seed=seed)
        return out


@samples
def test_values(sample):
    case = CudaCase(sample)
    exact = case.stock(*case.exact_inputs())
    out, mean, rstd = case.forward()
    assert_as_good_as_stock(out, case.stock(*case.inputs), exact)
    x, bias, residual, *_ = case.exact_inputs()
    s = residual + case.kept * (1 / (1 - case.p)) * (x + bias)
    assert torch.allclose(mean.double(), s.mean(1), rtol=1e-5, atol=1e-5)
    variance = s.var(1, correction=0) + EPS
    assert torch.allclose(rstd.double(), variance.rsqrt(), rtol=1e-4)


@samples
def test_gradients(sample):
    case = CudaCase(sample)
    exact = gradients(case.stock, case.exact_inputs(), case.grad.double())
    stock = gradients(case.stock, case.inputs, case.grad)
    dx, dresidual, dbias, dweight, dshift = case.backward()
    found = [dx, dbias, dresidual, dweight, dshift]
    for triple in zip(found, stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


@samples
def test_tangents(sample):
    case, results = CudaCase(sample), []
    for inputs in (case.inputs, case.exact_inputs()):
        primals = [inputs[0], inputs[2]]
        tangents = [t.to(x.dtype) for t, x in zip(case.tangents, primals, strict=True)]
        results.append(float_tangent(case.along(case.stock, inputs), primals, tangents))
    assert_as_good_as_stock(case.jvp(), *results)


@pytest.mark.parametrize("name", ["primes", "bert-base", "no dropout", "gaps between rows"])
def test_masks_are_those_of_dropout_mask(name):
    rows, width, _, _, p, layout = SAMPLES[name]
    case = CudaCase((rows, width, F32, F32, p, layout))
    dx, dresidual, *_ = case.backward()
    assert torch.equal(dx, dresidual * dropout_mask(case.offsets, width, p, RNG, SITE))


@kernels
def test_same_bits_in_any_order_of_threads(sample):
    case = CudaCase(sample)
    assert_same_bits_in_any_order(
        lambda seed: [*case.forward(seed), *case.backward(seed), case.jvp(seed)]
    )


@pytest.mark.parametrize("name", ["narrow, torch.bfloat16 and torch.float32", "primes"])
def test_bfloat16_copies(name):
    case = CudaCase(all_samples[name])
    for run in (lambda low: case.forward(low=low)[0], lambda low: case.jvp(low=low)):
        low = unwritten(*case.inputs[2].shape, dtype=BF16, gap=8)
        out = run(low)
        assert torch.equal(low, out.to(BF16))
        assert torch.as_strided(low, (len(low), 8), low.stride(), low.shape[1])[:-1].isnan().all()


@pytest.mark.parametrize("name", ["wide, torch.float16 and torch.float32", "primes in bf16"])
def test_the_gradient_may_come_in_two_summands(name):
    case = CudaCase(all_samples[name])
    product = torch.randn(case.grad.shape).to(case.inputs[0].dtype)
    expected = case.backward(grad=case.grad + product.to(case.grad.dtype))
    for mine, other in zip(case.backward(product=product), expected, strict=True):
        assert torch.equal(mine, other)


def test_without_weight_gradients_the_others_are_the_same():
    case = CudaCase(all_samples["primes"])
    expected = case.backward()[:2]
    for mine, other in zip(case.backward(need_weight_grads=False), expected, strict=True):
        assert torch.equal(mine, other)


def test_what_no_kernel_takes_is_refused():
    with pytest.raises(CudaError, match="returned error 1"):
        CudaCase((2, 2049, F32, F32, 0.1, "dense")).forward()
    with pytest.raises(CudaError, match="returned error 1"):
        CudaCase((2, 8, F32, BF16, 0.1, "dense")).forward()
