"""What the host functions of ``task_heads`` refuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_rows, check_tensor, check_written
from .head_table import Heads, check_places, check_scales, read_heads


def check_heads(
    op: str, heads: Sequence[int], scales: Sequence[float], pooled: Tensor,
    factors: Tensor | None, weights: Tensor,
) -> Heads:  # fmt: skip
    """Of the ops on one pass."""
    check_pooled(op, pooled)
    check_like(op, "factors", factors, pooled)
    check_flat(op, "weights", weights, None, pooled.device)
    found = read_heads(op, heads, pooled.shape[1])
    check_scales(op, scales, found)
    check_places(op, found, pooled.shape[0], "weights", weights.shape[0])
    return found


def check_pooled(op: str, pooled: Tensor) -> None:
    if pooled.dtype != torch.float32:
        check_tensor(op, "pooled", pooled, torch.float32, tuple(pooled.shape), pooled.device)
    check_rows(op, "pooled", pooled)


def check_like(op: str, name: str, x: Tensor | None, pooled: Tensor) -> None:
    if x is not None:
        check_tensor(op, name, x, torch.float32, tuple(pooled.shape), pooled.device)


def check_flat(
    op: str, name: str, x: Tensor, size: int | None, device: torch.device, is_written: bool = False
) -> None:
    """A vector; of any length where the size is None."""
    shape = (x.numel() if size is None else size,)
    check = check_written if is_written else check_tensor
    check(op, name, x, torch.float32, shape, device)
