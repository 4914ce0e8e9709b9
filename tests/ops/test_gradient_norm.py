"""The norm of all gradients: what is not finite, both dtypes, and the factor that clips."""

from __future__ import annotations

import math

import pytest
import torch

from sbrrt_fast.ops.gradient_norm import clipped_gradient_norm
from tests.ops.backends import DEVICES, backends_of
from tests.ops.update_samples import clipped, norm, samples

every_backend = backends_of("gradient_norm", "reference", "cuda_on_cpu")


@every_backend
def test_norm_shows_what_is_not_finite(backend):
    def of(*grads):
        return norm([g.to(DEVICES.get(backend, "cpu")) for g in grads], backend).item()

    assert of(torch.tensor([1.0, math.inf])) == math.inf
    assert math.isnan(of(torch.ones(70), torch.tensor([math.nan])))
    assert backend == "cuda_on_cpu" or of(torch.empty(0)) == 0.0


@every_backend
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_clip_factor_is_torch_s(max_norm, backend):
    p = torch.nn.Parameter(torch.zeros(50))
    p.grad = torch.randn(50)
    grad = p.grad.clone()
    found = clipped([grad], max_norm, backend)
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_([p], max_norm)
    assert torch.allclose(found.clip_factor * grad, p.grad, rtol=1e-6)
    assert found.is_finite == 1


@every_backend
@samples
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_factor_equals_float64(shapes, max_norm, backend):
    grads = [torch.randn(shape) for shape in shapes]
    exact = torch.cat([g.double().reshape(-1) for g in grads]).norm()
    expected = (max_norm / (exact + 1e-6)).clamp(max=1.0)
    found = clipped(grads, max_norm, backend)
    assert found.clip_factor.dtype == torch.float32
    assert torch.allclose(found.clip_factor.double(), expected, rtol=3e-7, atol=0)
    assert found.norm.double() == pytest.approx(exact.item(), rel=3e-7)


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_a_norm_that_is_not_finite_has_no_clip_factor(value, max_norm, backend):
    found = clipped([torch.ones(70), torch.tensor([value, 1.0])], max_norm, backend)
    assert not found.norm.isfinite() or (value == 1e30 and backend == "reference")
    assert bool(found.clip_factor.isnan()) != bool(found.norm.isfinite())
    assert found.is_finite == float(found.norm.isfinite())
    largest = clipped([torch.tensor([1e19])], max_norm, backend)
    assert largest.clip_factor.isfinite() and largest.is_finite == 1


@every_backend
def test_the_norm_of_gradients_of_both_dtypes(backend):
    grads = [torch.randn(40), torch.randn(16390).bfloat16(), torch.randn(3, 5)]
    grads[1] = grads[1].float().div(64).bfloat16()
    exact = torch.cat([g.double().reshape(-1) for g in grads]).norm()
    found = clipped(grads, 0.5, backend)
    assert found.norm.double() == pytest.approx(exact.item(), rel=3e-7)
    assert found.clip_factor.double() == pytest.approx(0.5 / (exact.item() + 1e-6), rel=3e-7)


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_a_negative_norm_to_clip_to_is_refused(max_norm):
    with pytest.raises(ValueError, match=r"max_norm must be >= 0, got (-1|nan)"):
        clipped_gradient_norm([torch.ones(3)], max_norm)
