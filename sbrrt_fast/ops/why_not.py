"""What the ops on rows of features share: their dropout arguments, and why C++ can not run them."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops.autodiff import has_tangent, tangent_is_differentiated

NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def cpu_reason(*, differentiable: dict[str, Tensor], constant: dict[str, Tensor]) -> str | None:
    """Why the C++ ops cannot take these floating-point tensors, or None.

    Args:
        differentiable: by name, those in which the op has a forward-mode derivative.
        constant: by name, those in which it has none.
    """
    for tensors in (differentiable, constant):
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu":
                return f"{name} is on {tensor.device}, not cpu"
            if tensor.dtype not in NATIVE_DTYPES:
                return f"{name} is {_bare(tensor.dtype)}, which runs on the reference"
    for name, tensor in differentiable.items():
        if tangent_is_differentiated(tensor):
            return f"the tangent of {name} is itself being differentiated"
    for name, tensor in constant.items():
        if has_tangent(tensor):
            return f"{name} has a tangent, which runs on the reference"
    return None


def dropout_arguments(
    op: str, p: float, rng: Tensor | None, offsets: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """rng and offsets, or zeros in their place for p = 0, where nothing reads them.

    Raises:
        ValueError: p is outside [0, 1), or p > 0 and one of them is None.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{op}: p must be in [0, 1), got {p}")
    if p > 0 and (rng is None or offsets is None):
        raise ValueError(f"{op}: p = {p} needs rng (seed, step) and offsets; at least one is None")
    if rng is None:
        rng = torch.zeros(2, dtype=torch.int64, device=rows.device)
    if offsets is None:
        offsets = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    return rng, offsets


def _bare(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
