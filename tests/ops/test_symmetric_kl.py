"""The divergences against their definitions in float64."""

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
)


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
