"""symmetric_kl's CUDA kernels, executed on the CPU."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops.symmetric_kl import symmetric_kl_fisher_reference, symmetric_kl_reference
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import assert_same_bits_in_any_order, unwritten
from tests.ops.op_checks import BF16, F32, assert_as_good_as_stock, gradients
from tests.ops.test_symmetric_kl_cpu import SAMPLES, doubled, inputs, samples, scales

F16 = torch.float16
DTYPES = [(BF16, F32), (F32, BF16), (BF16, BF16), (F16, F32), (F32, F16), (F16, F16)]


def call(function, logits, other, *others, seed=0):
    tensors = (value for x in (logits, other) for value in (x, *x.stride(), x.dtype))
    library("symmetric_kl").call(function, *logits.shape, *tensors, *others, seed=seed)


def forward(logits, delta, seed=0):
    out = unwritten(len(logits))
    call("forward", logits, delta, out, seed=seed)
    return out


def backward(grad, logits, delta, seed=0):
    written = [unwritten(*x.shape, dtype=x.dtype) for x in (logits, delta)]
    call("backward", logits, delta, grad, grad.stride(0), *written, seed=seed)
    return written


def fisher(logits, tangent, seed=0):
    out = unwritten(*logits.shape)
    call("fisher", logits, tangent, out, seed=seed)
    return out


def compare(sample, scale, dtypes=(F32, F32)):
    """Value and both gradients against float64, with stock torch's error beside."""
    primals = inputs(sample, scale, dtypes)
    exact = symmetric_kl_reference(*doubled(primals))
    ours = forward(*primals)
    assert_as_good_as_stock(ours, symmetric_kl_reference(*primals), exact)
    assert ((ours - exact).abs() <= 1.2e-7 * exact + torch.finfo(F32).tiny).all()
    grad = torch.randn(2 * sample[0])[::2]
    stock = gradients(symmetric_kl_reference, primals, grad)
    truth = gradients(symmetric_kl_reference, doubled(primals), grad.double())
    for triple in zip(backward(grad, *primals), stock, truth, strict=True):
        assert_as_good_as_stock(*triple)


@samples
@scales
def test_against_float64(sample, scale):
    compare(sample, scale)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_other_dtypes(dtypes):
    for scale in (1e-4, 0.5, 10.0):
        compare(SAMPLES["prime sizes"], scale, dtypes)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 2.0])
def test_gradients_keep_their_relative_precision(scale):
    """Row by row: the change's gradient is of first order in it, the logits' of second."""
    primals = inputs(SAMPLES["batch of 200"], scale)
    truth = gradients(symmetric_kl_reference, doubled(primals), torch.ones(200).double())
    for ours, expected in zip(backward(torch.ones(200), *primals), truth, strict=True):
        error = (ours.double() - expected).norm(dim=1)
        assert (error <= 2e-7 * expected.norm(dim=1)).all()


@samples
def test_fisher_product(sample):
    for dtypes in ((F32, F32), *DTYPES[::2]):
        w, t = inputs(sample, 1.0, dtypes)
        exact = symmetric_kl_fisher_reference(w.double(), t.double())
        assert_as_good_as_stock(fisher(w, t), symmetric_kl_fisher_reference(w, t), exact)


def test_one_class_has_no_divergence():
    w, d = torch.randn(5, 1), torch.randn(5, 1)
    assert forward(w, d).eq(0).all()
    assert all(g.eq(0).all() for g in backward(torch.ones(5), w, d))


@pytest.mark.parametrize("name", ["prime sizes", "strided rows"])
def test_same_bits_in_any_order_of_threads(name):
    primals, grad = inputs(SAMPLES[name], 0.5), torch.randn(SAMPLES[name][0])
    assert_same_bits_in_any_order(
        lambda seed: [
            forward(*primals, seed),
            *backward(grad, *primals, seed),
            fisher(*primals, seed),
        ]
    )
