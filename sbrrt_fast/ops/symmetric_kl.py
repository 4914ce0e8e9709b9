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


def symmetric_kl_delta(logits: Tensor, delta: Tensor) -> Tensor:
    """Symmetric KL between softmax(logits + delta) and softmax(logits), per example.

    Differentiable in both arguments, to any order, and in forward mode.

    Args:
        logits: [..., num_classes], floating.
        delta: the same shape; small ones keep their relative precision.

    Returns:
        [...], >= 0, of the promoted dtype, at least float32.
    """
    dtype = torch.promote_types(torch.promote_types(logits.dtype, delta.dtype), torch.float32)
    logits, delta = logits.to(dtype), delta.to(dtype)
    log_q = torch.log_softmax(logits, dim=-1)
    q = log_q.exp()
    log_ratio = delta - _log_partition_shift(log_q, q, delta)
    return (_probability_change(log_q, q, log_ratio) * log_ratio).sum(dim=-1)


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


def symmetric_kl_fisher(logits: Tensor, tangent: Tensor) -> Tensor:
    """The Hessian of symmetric KL in the delta at 0, times a tangent: 2 (diag q - q q^T) t.

    This is the divergence's gradient at delta = t to first order in t.

    Args:
        logits: [..., num_classes]; tangent: the same shape.

    Returns:
        the same shape, at least float32.
    """
    dtype = torch.promote_types(torch.promote_types(logits.dtype, tangent.dtype), torch.float32)
    q = torch.softmax(logits.to(dtype), dim=-1)
    tangent = tangent.to(dtype)
    return 2.0 * q * (tangent - (q * tangent).sum(dim=-1, keepdim=True))
