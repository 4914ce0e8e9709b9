"""The divergences l_s of SMART: symmetric KL of classes, squared difference of values.

For logits w and z = w + d with q = softmax(w), p = softmax(z):

    symKL = KL(p || q) + KL(q || p) = sum_j (p_j - q_j) (log p_j - log q_j)

The delta form never subtracts nearly equal probabilities. With the shift of the log-partition
L = log sum_j q_j exp(d_j) = log1p(sum_j q_j expm1(d_j)) and c = d - L = log p - log q:

    symKL = sum_j (p_j - q_j) c_j,    p_j - q_j = q_j expm1(c_j)

Its relative error is that of ``expm1``, where the log-softmax form loses all digits as d -> 0.
Where probabilities differ by much, L and p - q are taken directly, which is then the exact way.
Source of l_s: arXiv 1911.03437, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.autograd import Rule, differentiable
from sbrrt_fast.ops._backend.backends import TRITON, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.autodiff import is_batched_or_nested

MAX_TRITON_CLASSES = 4096  # of kernels.symmetric_kl, which needs Triton

define(
    "symmetric_kl_forward_into(Tensor logits, Tensor delta, Tensor(a!) out)",
    "symmetric_kl.forward_into",
)
define(
    "symmetric_kl_backward_into(Tensor grad, Tensor logits, Tensor delta, Tensor(a!) dlogits, "
    "Tensor(b!) ddelta)",
    "symmetric_kl.backward_into",
)
define(
    "symmetric_kl_fisher_into(Tensor logits, Tensor tangent, Tensor(a!) out)",
    "symmetric_kl.fisher_into",
)


def symmetric_kl_reference(logits: Tensor, delta: Tensor) -> Tensor:
    """See ``symmetric_kl_delta``; any floating dtype, differentiable to any order."""
    dtype = torch.promote_types(torch.promote_types(logits.dtype, delta.dtype), torch.float32)
    _, log_ratio, change = log_ratio_and_change(logits.to(dtype), delta.to(dtype))
    return (change * log_ratio).sum(dim=-1)


def log_ratio_and_change(logits: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(q, log p - log q, p - q) for q = softmax(logits) and p = softmax(logits + delta)."""
    log_q = torch.log_softmax(logits, dim=-1)
    q = log_q.exp()
    log_ratio = delta - _log_partition_shift(log_q, q, delta)
    return q, log_ratio, _probability_change(log_q, q, log_ratio)


def _log_partition_shift(log_q: Tensor, q: Tensor, delta: Tensor) -> Tensor:
    """L = log sum_j q_j exp(d_j), [..., 1]; by log1p where it is small."""
    small = delta.clamp(-1.0, 1.0)
    change = (q * torch.expm1(small)).sum(dim=-1, keepdim=True).clamp(min=-0.75)
    is_small = delta.abs().amax(dim=-1, keepdim=True) <= 1.0
    return torch.where(
        is_small, torch.log1p(change), torch.logsumexp(log_q + delta, dim=-1, keepdim=True)
    )


def _probability_change(log_q: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """p - q, by expm1 where they are close."""
    near = q * torch.expm1(log_ratio.clamp(-1.0, 1.0))
    return torch.where(log_ratio.abs() <= 1.0, near, (log_q + log_ratio).exp() - q)


def _forward(ops, logits: Tensor, delta: Tensor) -> tuple[Tensor]:
    out = empty_floats(logits, logits.shape[0])
    ops.symmetric_kl_forward_into(logits, delta, out)
    return (out,)


def _backward(ops, grad: Tensor, inputs, saved, needs) -> tuple[Tensor, Tensor]:
    dlogits, ddelta = (empty_like(x) for x in inputs)
    ops.symmetric_kl_backward_into(grad, *inputs, dlogits, ddelta)
    return dlogits, ddelta


def _jvp(ops, tangents, inputs, saved) -> Tensor:
    """The gradient times the tangents."""
    ones = inputs[0].new_ones(inputs[0].shape[0], dtype=torch.float32)
    gradients = _backward(ops, ones, [x.float() for x in inputs], saved, None)
    pairs = zip(gradients, tangents, strict=True)
    products = [g.double() * t for g, t in pairs if t is not None]
    return sum(products).sum(dim=-1).float()


def _differentiable_backward(grad: Tensor, logits: Tensor, delta: Tensor) -> tuple:
    """The gradients with their graph, by the reference: for derivatives of higher order."""
    value = symmetric_kl_reference(logits, delta)
    needed = [x for x in (logits, delta) if x.requires_grad]
    grads = iter(torch.autograd.grad(value, needed, grad, create_graph=True))
    return tuple(next(grads) if x.requires_grad else None for x in (logits, delta))


_run_rows = differentiable(
    Rule("symmetric_kl_forward_into", _forward, _backward, _jvp, higher=_differentiable_backward)
)


def _run(backend: Backend, logits: Tensor, delta: Tensor) -> Tensor:
    if logits.dim() == 2:
        return _run_rows(backend, logits, delta)
    rows = (x.reshape(-1, logits.shape[-1]) for x in (logits, delta))
    return _run_rows(backend, *rows).view(logits.shape[:-1])


def _run_fisher(backend: Backend, logits: Tensor, tangent: Tensor) -> Tensor:
    rows = [x.reshape(-1, logits.shape[-1]) for x in (logits, tangent)]
    out = empty_floats(rows[0], *rows[0].shape)
    backend.ops.symmetric_kl_fisher_into(*rows, out)
    return out.view(logits.shape)


def _why_not(backend: Backend, logits: Tensor, other: Tensor) -> str | None:
    inputs = {"logits": logits, "the other input": other}
    if reason := backend.tensor_reason(differentiable=inputs, constant={}):
        return reason
    if backend is TRITON and logits.shape[-1] > MAX_TRITON_CLASSES:
        return f"{logits.shape[-1]} classes are above {MAX_TRITON_CLASSES}"
    if is_batched_or_nested(logits, other):
        return "torch.func's vmap and gradients run on the reference"
    return None


def _check_shapes(op: str, name: str, logits: Tensor, other: Tensor) -> None:
    if logits.shape != other.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{op}: logits and {name} must have one shape, got {shapes}")


def _fisher_why_not(backend: Backend, logits: Tensor, tangent: Tensor) -> str | None:
    if torch.is_grad_enabled() and (logits.requires_grad or tangent.requires_grad):
        return "the product's own derivative runs on the reference"
    return _why_not(backend, logits, tangent)


_delta = fused_op("symmetric_kl", _run, _why_not, symmetric_kl_reference)


def symmetric_kl_delta(logits: Tensor, delta: Tensor, *, backend: str = "reference") -> Tensor:
    """Symmetric KL between softmax(logits + delta) and softmax(logits), per example.

    Differentiable in both arguments, to any order, and in forward mode.

    Args:
        logits: [..., num_classes], floating.
        delta: the same shape; small ones keep their relative precision.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        [...], >= 0, of the promoted dtype, at least float32.

    Raises:
        ValueError: the shapes differ.
        BackendError: the named backend cannot run these inputs.
    """
    _check_shapes("symmetric_kl", "delta", logits, delta)
    return _delta(logits, delta, backend=backend)


def symmetric_kl(z: Tensor, w: Tensor) -> Tensor:
    """Symmetric KL between softmax(z) and softmax(w), per example; see ``symmetric_kl_delta``."""
    return symmetric_kl_delta(w, z - w)


def bernoulli_logits(logit: Tensor) -> Tensor:
    """Two-class logits [..., 2] with the same probabilities as one sigmoid logit [...]."""
    return torch.stack([torch.zeros_like(logit), logit], dim=-1)


def squared_difference_delta(values: Tensor, delta: Tensor) -> Tensor:
    """The squared loss between ``values + delta`` and ``values``, per example: delta^2."""
    dtype = torch.promote_types(torch.promote_types(values.dtype, delta.dtype), torch.float32)
    return delta.to(dtype).square()


def symmetric_kl_fisher_reference(logits: Tensor, tangent: Tensor) -> Tensor:
    """See ``symmetric_kl_fisher``; any floating dtype."""
    dtype = torch.promote_types(torch.promote_types(logits.dtype, tangent.dtype), torch.float32)
    q = torch.softmax(logits.to(dtype), dim=-1)
    tangent = tangent.to(dtype)
    return 2.0 * q * (tangent - (q * tangent).sum(dim=-1, keepdim=True))


_fisher = fused_op(
    "symmetric_kl_fisher", _run_fisher, _fisher_why_not, symmetric_kl_fisher_reference
)


def symmetric_kl_fisher(logits: Tensor, tangent: Tensor, *, backend: str = "reference") -> Tensor:
    """The Hessian of symmetric KL in the delta at 0, times a tangent: 2 (diag q - q q^T) t.

    This is the divergence's gradient at delta = t to first order in t.

    Args:
        logits: [..., num_classes]; tangent: the same shape.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        the same shape, at least float32.

    Raises:
        ValueError: the shapes differ.
        BackendError: the named backend cannot run these inputs.
    """
    _check_shapes("symmetric_kl_fisher", "tangent", logits, tangent)
    return _fisher(logits, tangent, backend=backend)


OPS = (_delta, _fisher)
