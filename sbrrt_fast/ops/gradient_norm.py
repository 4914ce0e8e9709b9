"""The norm of all gradients together, and what an update makes of it, in one pass.

Gradients whose norm is not finite have no clip factor, so that the update is left out
(``ops.adamw_ema``), and the device decides it. ``docs/math/adamw_ema.md`` has the order of sums.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import TRITON, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats

define(
    "gradient_norm_into(Tensor[] grads, float max_norm, Tensor(a!) out)",
    "gradient_norm.gradient_norm_into",
)


def gradient_norm_reference(grads: Sequence[Tensor], max_norm: float) -> Tensor:
    """See ``clipped_gradient_norm``; any floating dtype, summed in float64. Returns [3]."""
    total = sum((g.double().square().sum() for g in grads), torch.zeros((), dtype=torch.float64))
    norm = total.sqrt().to(torch.promote_types(_dtype_of(grads), torch.float32))
    is_finite = norm.isfinite()
    factor = torch.ones_like(norm)
    if max_norm > 0:
        factor = (max_norm / (norm.double() + 1e-6)).clamp(max=1.0).to(norm.dtype)
    return torch.stack([norm, factor.where(is_finite, torch.nan), is_finite.to(norm.dtype)])


def _dtype_of(grads: Sequence[Tensor]) -> torch.dtype:
    dtypes = {g.dtype for g in grads}
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def why_not_gradients(backend: Backend, grads: Sequence[Tensor], *args) -> str | None:
    """Why no kernel can read these gradients, or None."""
    devices = {g.device.type for g in grads} - {backend.device}
    if devices:
        return f"gradients are on {', '.join(sorted(devices))}, not {backend.device}"
    one_of_each = {g.dtype: g for g in grads}
    if backend is not TRITON and torch.float16 in one_of_each:
        return "float16 gradients run on the reference"
    reasons = (backend.dtype_reason("a gradient", g) for g in one_of_each.values())
    return next((reason for reason in reasons if reason), None)


def _run_norm(backend: Backend, grads: Sequence[Tensor], max_norm: float) -> Tensor:
    out = empty_floats(grads[0], 3)
    backend.ops.gradient_norm_into(grads, max_norm, out)
    return out


_norm = fused_op("gradient_norm", _run_norm, why_not_gradients, gradient_norm_reference)


@torch.no_grad()
def gradient_norm(grads: Sequence[Tensor], *, backend: str = "auto") -> Tensor:
    """The 2-norm of all gradients together, 0-dim, float32 (float64 for float64 gradients).

    The same bits for any number of threads. No gradients at all have norm 0.
    """
    return clipped_gradient_norm(grads, 0.0, backend=backend).norm


class ClippedNorm(NamedTuple):
    """Of gradients; all 0-dim, of the norm's dtype and on its device.

    Attributes:
        norm: before clipping. clip_factor: what gradients are multiplied by; NaN for a norm that is
            not finite, which leaves the update out. is_finite: 1 for a finite norm, else 0.
    """

    norm: Tensor
    clip_factor: Tensor
    is_finite: Tensor


@torch.no_grad()
def clipped_gradient_norm(
    grads: Sequence[Tensor], max_norm: float, *, backend: str = "auto"
) -> ClippedNorm:
    """``gradient_norm`` with what an update makes of it, in one pass.

    Args:
        grads: float32 or bfloat16, each its own.
        max_norm: of the clipped gradients: the factor is ``min(1, max_norm / (norm + 1e-6))``, as
            torch.nn.utils.clip_grad_norm_ has it. 0 does not clip.

    Raises:
        ValueError: max_norm is negative.
        BackendError: the named backend cannot run these inputs.
    """
    if not max_norm >= 0:
        raise ValueError(f"gradient_norm: max_norm must be >= 0, got {max_norm}")
    grads = list(grads)
    results = _norm(grads, max_norm, backend=backend) if grads else torch.tensor([0.0, 1.0, 1.0])
    return ClippedNorm(*results.unbind())


OPS = (_norm,)
