"""One ascent step of SMART: move along the gradient, then project.

With the perturbation delta, the gradient g and norms taken per token or per sequence:

    g <- g / ||g||                    (if ``normalize_gradient``)
    delta <- Pi(delta + eta g)

Pi clips to the ball of the radius, or scales to the radius. eta = inf is the limit: the gradient's
direction alone. Source: arXiv 1911.03437, Algorithm 1, the inner loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import TRITON, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_like

define(
    "smart_ascend_into(Tensor delta, Tensor gradient, Tensor mask, Tensor sequence, "
    "SymInt num_sequences, float step_size, bool normalize_gradient, str projection, "
    "float radius, str norm, str level, Tensor(a!) out)",
    "smart_ascend.smart_ascend_into",
)


def group_norm(x: Tensor, sequence: Tensor, num_sequences: int, norm: str, level: str) -> Tensor:
    """The norm of each token's group, float32 or above, [num_tokens, 1].

    Args:
        x: [num_tokens, hidden]; tokens that do not count must be zero.
        sequence: int64 [num_tokens], the sequence of each token.
        norm: ``inf`` or ``2``.
        level: groups are single tokens (``token``) or whole sequences (``sequence``).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    order = math.inf if norm == "inf" else 2.0
    # Scaled by its largest entry, so that squares of tiny gradients do not underflow.
    largest = x.abs().amax(dim=-1)
    if level == "sequence":
        zeros = largest.new_zeros(num_sequences)
        largest = zeros.scatter_reduce(0, sequence, largest, "amax")[sequence]
    if order == math.inf:
        return largest[:, None]
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    squares = (x / scale[:, None]).square().sum(dim=-1)
    if level == "sequence":
        squares = squares.new_zeros(num_sequences).index_add(0, sequence, squares)[sequence]
    return (scale * squares.sqrt())[:, None]


def smart_ascend_reference(
    delta: Tensor,
    gradient: Tensor,
    mask: Tensor,
    sequence: Tensor,
    num_sequences: int,
    *,
    step_size: float,
    normalize_gradient: bool,
    projection: str,
    radius: float,
    norm: str,
    level: str,
) -> Tensor:
    """The perturbation after one ascent step.

    Args:
        delta, gradient: [num_tokens, hidden].
        mask: bool [num_tokens], True where a token may be perturbed.
        sequence: int64 [num_tokens]; num_sequences: their number.
        step_size: eta > 0, may be ``inf``.
        normalize_gradient: divide the gradient by its group's norm first.
        projection: ``ball`` or ``normalize``; radius: their size; norm: ``inf`` or ``2``.
        level: ``token`` or ``sequence``.

    Returns:
        [num_tokens, hidden] of delta's dtype, zero where the mask is False. Where a group's
        gradient is zero, its old perturbation is projected.
    """
    keep = mask[:, None]
    gradient = torch.where(keep, gradient, torch.zeros_like(gradient)).to(delta.dtype)
    delta = torch.where(keep, delta, torch.zeros_like(delta))
    groups = (sequence, num_sequences, norm, level)
    if math.isinf(step_size):
        size = group_norm(gradient, *groups).to(delta.dtype)
        moved = torch.where(size > 0, gradient / size.clamp(min=_tiny(delta)), delta)
        if projection == "ball" and norm == "inf":
            return radius * torch.sign(moved)
        return _scale_to(moved, radius, groups)
    if normalize_gradient:
        gradient = gradient / group_norm(gradient, *groups).to(delta.dtype).clamp(min=_tiny(delta))
    moved = delta + step_size * gradient
    if projection == "normalize":
        return _scale_to(moved, radius, groups)
    if norm == "inf":
        return moved.clamp(-radius, radius)
    size = group_norm(moved, *groups).to(delta.dtype)
    return torch.where(size > radius, moved * (radius / size.clamp(min=_tiny(delta))), moved)


def _scale_to(x: Tensor, radius: float, groups: tuple) -> Tensor:
    """Each group scaled to the radius; a zero group stays zero."""
    size = group_norm(x, *groups).to(x.dtype)
    return torch.where(size > 0, x * (radius / size.clamp(min=_tiny(x))), x)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _run(
    backend: Backend,
    delta: Tensor,
    gradient: Tensor,
    mask: Tensor,
    sequence: Tensor,
    num_sequences: int,
    *,
    step_size: float,
    normalize_gradient: bool,
    projection: str,
    radius: float,
    norm: str,
    level: str,
) -> Tensor:
    out = empty_like(delta)
    backend.ops.smart_ascend_into(
        delta, gradient, mask, sequence, num_sequences, step_size, normalize_gradient,
        projection, radius, norm, level, out,
    )  # fmt: skip
    return out


def _why_not(backend: Backend, delta: Tensor, gradient: Tensor, *args, **options) -> str | None:
    constant = {"delta": delta, "gradient": gradient}
    reason = backend.tensor_reason(differentiable={}, constant=constant)
    return reason or (backend.width_reason("delta", delta) if backend is TRITON else None)


_ascend = fused_op("smart_ascend", _run, _why_not, smart_ascend_reference)


@torch.no_grad()
def smart_ascend(
    delta: Tensor,
    gradient: Tensor,
    mask: Tensor,
    sequence: Tensor,
    num_sequences: int,
    *,
    step_size: float,
    normalize_gradient: bool,
    projection: str,
    radius: float,
    norm: str,
    level: str,
    backend: str = "auto",
) -> Tensor:
    """The perturbation after one ascent step; not differentiable.

    Arguments and result are those of ``smart_ascend_reference``. The fused ops work in float32 and
    round once, where the reference rounds to the dtype of ``delta`` at each operation.

    Args:
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit.
        BackendError: the named backend cannot run these inputs.
    """
    return _ascend(
        delta, gradient, mask, sequence, num_sequences, step_size=step_size,
        normalize_gradient=normalize_gradient, projection=projection, radius=radius, norm=norm,
        level=level, backend=backend,
    )  # fmt: skip


OPS = (_ascend,)
