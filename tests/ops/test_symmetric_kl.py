"""The divergences against their definitions in float64, and what is special to their kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sbrrt_fast.ops.symmetric_kl import (
    bernoulli_logits,
    squared_difference_delta,
    symmetric_kl,
    symmetric_kl_delta,
    symmetric_kl_fisher,
    symmetric_kl_reference,
)
from tests.ops.backends import DEVICES, backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.symmetric_kl import SymmetricKlCase
from tests.ops.on_device import moved
from tests.ops.op_checks import gradients


def definition(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    z, w = z.double(), w.double()
    difference = F.log_softmax(z, -1) - F.log_softmax(w, -1)
    return ((z.softmax(-1) - w.softmax(-1)) * difference).sum(-1)


def small_change_oracle(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The delta form evaluated with 60 decimal digits."""
    mpmath = pytest.importorskip("mpmath")
    values = []
    with mpmath.workdps(60):
        for row, change in zip(w.double().tolist(), d.double().tolist(), strict=True):
            a = [mpmath.mpf(x) for x in row]
            b = [mpmath.mpf(x) + mpmath.mpf(y) for x, y in zip(row, change, strict=True)]
            za, zb = sum(map(mpmath.exp, a)), sum(map(mpmath.exp, b))
            p = [mpmath.exp(x) / zb for x in b]
            q = [mpmath.exp(x) / za for x in a]
            pairs = zip(p, q, strict=True)
            values.append(float(sum((x - y) * mpmath.log(x / y) for x, y in pairs)))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("num_classes", [2, 3, 5, 17])
def test_delta_form_keeps_its_digits_at_changes_of_1e_5(num_classes):
    w = 3 * torch.randn(50, num_classes)
    z = w + 1e-5 * torch.randn(50, num_classes)
    expected = small_change_oracle(w, z.double() - w.double())
    assert ((symmetric_kl(z, w) - expected).abs() <= 1e-6 * expected).all()


def test_log_softmax_form_would_not_keep_them():
    w = 3 * torch.randn(50, 5)
    z = w + 1e-5 * torch.randn(50, 5)
    naive = ((z.softmax(-1) - w.softmax(-1)) * (z.log_softmax(-1) - w.log_softmax(-1))).sum(-1)
    expected = small_change_oracle(w, z.double() - w.double())
    assert ((naive - expected) / expected).abs().max() > 1e-3


# from tiny to one class taking over from another, where the delta form alone would overflow
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.3, 1.0, 3.0, 30.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_at_all_sizes(scale, dtype):
    w = torch.randn(64, 5, dtype=dtype) * max(1.0, scale / 10)
    d = scale * torch.randn(64, 5, dtype=dtype)
    got = symmetric_kl_delta(w, d).double()
    expected = small_change_oracle(w, d)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-11
    assert torch.isfinite(got).all() and (got >= 0).all()
    assert ((got - expected).abs() <= tolerance * expected + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("scale", [1e-2, 0.7, 5.0])
def test_gradients_to_second_order_in_both_arguments(scale):
    w = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    d = (scale * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(symmetric_kl_delta, (w, d))
    assert torch.autograd.gradcheck(symmetric_kl_delta, (w, d), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(symmetric_kl_delta, (w, d))


def test_is_symmetric_and_ignores_a_shift():
    z, w = torch.randn(2, 32, 5, dtype=torch.float64)
    assert torch.allclose(symmetric_kl(z, w), symmetric_kl(w, z), rtol=1e-12)
    assert torch.allclose(symmetric_kl(z + 40.0, w), symmetric_kl(z, w), rtol=1e-11)
    assert symmetric_kl(w, w).eq(0).all()


def test_fisher_product_is_the_gradient_for_small_changes():
    w = torch.randn(8, 5, dtype=torch.float64)
    t = 1e-6 * torch.randn(8, 5, dtype=torch.float64)
    d = t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(symmetric_kl_delta(w, d).sum(), d)
    assert (symmetric_kl_fisher(w, t) - gradient).norm() < 1e-5 * gradient.norm()


def test_bernoulli_logits_have_the_sigmoid_s_probabilities():
    logit = torch.linspace(-9, 9, 13, dtype=torch.float64)
    probability = bernoulli_logits(logit).softmax(-1)[:, 1]
    assert torch.allclose(probability, logit.sigmoid(), rtol=1e-12)


def test_bf16_inputs_are_measured_in_float32():
    w = torch.randn(16, 5, dtype=torch.bfloat16)
    d = torch.randn(16, 5, dtype=torch.bfloat16)
    got = symmetric_kl_delta(w, d)
    assert got.dtype == torch.float32
    expected = definition(w.double() + d.double(), w)
    assert torch.allclose(got.double(), expected, rtol=1e-4)
    assert torch.equal(squared_difference_delta(w[:, 0], d[:, 0]), d[:, 0].float().square())


OP = OPS["symmetric_kl"]
every_backend = backends_of("symmetric_kl", "cuda_on_cpu")
fused = backends_of("symmetric_kl")


def sampled(examples: int = 8, classes: int = 5, scale: float = 0.5) -> SymmetricKlCase:
    case = SymmetricKlCase((examples, classes, "dense", scale, torch.float32, torch.float32))
    case.grad = torch.ones(examples)
    return case


@every_backend
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 2.0])
def test_gradients_keep_their_relative_precision(scale, backend):
    """Row by row: the change's gradient is of first order in it, the logits' of second."""
    case = sampled(33, 3, scale)
    truth = gradients(symmetric_kl_reference, case.exact_inputs(), case.grad.double())
    for ours, expected in zip(run(OP, backend, case).gradients, truth, strict=True):
        error = (ours.cpu().double() - expected).norm(dim=1)
        assert (error <= 2e-7 * expected.norm(dim=1)).all()


@every_backend
def test_one_class_has_nothing_to_diverge(backend):
    found = run(OP, backend, sampled(7, 1))
    assert all(x.eq(0).all() for x in [*found.value, *found.gradients])


@every_backend
def test_masked_classes_and_no_change(backend):
    case, fewer = sampled(), sampled()
    case.inputs[0][:, 2] = -torch.inf
    found = run(OP, backend, case)
    assert all(x.isfinite().all() for x in [*found.value, *found.gradients])
    fewer.inputs = [x[:, [0, 1, 3, 4]] for x in case.inputs]
    assert torch.allclose(found.value[0], run(OP, backend, fewer).value[0], rtol=1e-6)
    case.inputs[1] = torch.zeros_like(case.inputs[1])
    assert run(OP, backend, case).value[0].eq(0).all()


@fused
def test_leading_dimensions(backend):
    w, d = moved([torch.randn(2, 3, 4, 5) for _ in range(2)], DEVICES.get(backend, "cpu"))
    flat = [x.reshape(24, 5) for x in (w, d)]
    for function, shape in ((symmetric_kl_delta, (2, 3, 4)), (symmetric_kl_fisher, w.shape)):
        found = function(w, d, backend=backend)
        assert found.shape == shape
        assert torch.equal(found.flatten(), function(*flat, backend=backend).flatten())


@fused
def test_second_derivatives_are_the_reference_s(backend):
    case, results = sampled(), []
    for name in ("reference", backend):
        w, d = (x.requires_grad_() for x in moved(case.inputs, DEVICES.get(backend, "cpu")))
        out = symmetric_kl_delta(w, d, backend=name)
        (first,) = torch.autograd.grad(out.sum(), d, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [w, d]))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_other_torch_func_transforms_run_on_the_reference():
    w, d = sampled().inputs

    def transforms(backend):
        def function(w, d):
            return symmetric_kl_delta(w, d, backend=backend)

        def loss(w, d):
            return function(w, d).sum()

        with torch.no_grad():
            batched = torch.vmap(lambda w, d: function(w[None], d[None])[0])(w, d)
        pulled_back = torch.func.vjp(function, w, d)[1](torch.ones(8))
        gradient, hessian = torch.func.grad(loss, 1)(w, d), torch.func.hessian(loss, 1)(w, d)
        return batched, *pulled_back, gradient, hessian

    for found, expected in zip(transforms("auto"), transforms("reference"), strict=True):
        assert torch.equal(found, expected)


def test_without_a_graph_no_function_is_made(monkeypatch):
    """autograd.Function costs several times the op."""
    w, d = sampled().inputs
    expected = symmetric_kl_delta(w, d, backend="cpu")

    def refuse(*args):
        raise AssertionError("a Function where autograd records nothing")

    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    assert torch.equal(symmetric_kl_delta(w, d, backend="cpu"), expected)
    with torch.no_grad():
        assert torch.equal(symmetric_kl_delta(w.requires_grad_(), d, backend="cpu"), expected)
    with pytest.raises(AssertionError, match="a Function where"), torch.enable_grad():
        symmetric_kl_delta(w, d, backend="cpu")


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_shapes_that_differ(backend):
    w, d = sampled().inputs
    shapes = r"must have one shape, got \(8, 5\) and \(1, 5\)"
    with pytest.raises(ValueError, match=f"symmetric_kl: logits and delta {shapes}"):
        symmetric_kl_delta(w, d[:1], backend=backend)
    with pytest.raises(ValueError, match=f"symmetric_kl_fisher: logits and tangent {shapes}"):
        symmetric_kl_fisher(w, d[:1], backend=backend)
