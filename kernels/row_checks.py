"""Checks that the ops on rows of features have in common; see ``checks``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_floating, check_tensor


def check_rows(op: str, name: str, x: Tensor) -> tuple[int, int]:
    """(rows, features) of the tensor that gives them to the others."""
    check_floating(op, name, x, 2)
    if x.shape[1] < 1:
        raise ValueError(f"{op}: {name} must have at least one feature, got {list(x.shape)}")
    return x.shape[0], x.shape[1]


def check_floats(op: str, device: torch.device, **tensors: tuple[Tensor, tuple]) -> None:
    """Each (tensor, shape), by name, is of a dtype that the kernels compute with."""
    for name, (x, shape) in tensors.items():
        check_floating(op, name, x, len(shape))
        check_tensor(op, name, x, x.dtype, shape, device)


def check_statistics(op: str, device: torch.device, num_rows: int, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        check_tensor(op, name, x, torch.float32, (num_rows,), device)


def check_indices(op: str, device: torch.device, num_rows: int, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        check_tensor(op, name, x, torch.int64, (num_rows,), device)


def check_epsilon(op: str, eps: float) -> None:
    if not (eps >= 0 and math.isfinite(eps)):
        raise ValueError(f"{op}: eps must be finite and not negative, got {eps}")
