"""Symmetric KL of a task's batch, forward and with both gradients, against plain PyTorch.

The log-softmax form is what a user would write; it loses its digits where the change is small, so
it is compared with the others at a change of order one. A batch has a few hundred bytes: these are
times of calls, not of memory.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta, symmetric_kl_fisher

SHAPES = {"sst-8": (8, 5), "quora-8": (8, 2), "sst-64": (64, 5)}
shapes = pytest.mark.parametrize("shape", list(SHAPES))


def cpu(logits, delta):
    return symmetric_kl_delta(logits, delta, backend="cpu")


def reference(logits, delta):
    return symmetric_kl_delta(logits, delta, backend="reference")


def log_softmax_form(logits, delta):
    log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(logits + delta, -1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def inputs(shape):
    return 2 * torch.randn(SHAPES[shape]), torch.randn(SHAPES[shape])


def with_gradients(variant, logits, delta):
    logits, delta = logits.detach().requires_grad_(), delta.detach().requires_grad_()
    return torch.autograd.grad(variant(logits, delta).mean(), [logits, delta])


VARIANTS = [cpu, reference, log_softmax_form]


@shapes
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda f: f.__name__)
def test_forward(benchmark, variant, shape):
    arguments = inputs(shape)
    assert torch.allclose(variant(*arguments), reference(*arguments), rtol=1e-4, atol=1e-5)
    benchmark.group = f"forward {shape}"
    benchmark(variant, *arguments)


@shapes
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda f: f.__name__)
def test_forward_and_backward(benchmark, variant, shape):
    arguments = inputs(shape)
    got, expected = (with_gradients(f, *arguments) for f in (variant, reference))
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    benchmark.group = f"forward and backward {shape}"
    benchmark(with_gradients, variant, *arguments)


@shapes
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_fisher(benchmark, backend, shape):
    logits, tangent = inputs(shape)
    got = symmetric_kl_fisher(logits, tangent, backend=backend)
    assert torch.allclose(got, symmetric_kl_fisher(logits, tangent), rtol=1e-4, atol=1e-6)
    benchmark.group = f"fisher {shape}"
    benchmark(symmetric_kl_fisher, logits, tangent, backend=backend)
