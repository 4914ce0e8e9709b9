"""Checks of the host functions' arguments that need no element; each names op and argument.

What device tensors hold (lengths, rows, the step) is not read: that would wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple, device: torch.device
) -> None:
    """A tensor of this dtype, shape and device.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, layout or device.
    """
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must have dtype {dtype}, got {_described(tensor)}")
    if tuple(tensor.shape) != shape or tensor.layout != torch.strided:
        raise ValueError(
            f"{op}: {name} must be a dense tensor of shape {list(shape)}, got {_described(tensor)}"
        )
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {_described(tensor)}")


def check_floating(op: str, name: str, tensor: Tensor, num_dims: int) -> None:
    """A float32, bfloat16 or float16 tensor with so many dimensions.

    Raises:
        TypeError, ValueError: as ``check_tensor``.
    """
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must have dtype float32, bfloat16 or float16, got {_described(tensor)}"
        )
    check_dimensions(op, name, tensor, num_dims)


def check_dimensions(op: str, name: str, tensor: Tensor, num_dims: int) -> None:
    """Their number.

    Raises:
        ValueError: another.
    """
    if tensor.dim() != num_dims:
        raise ValueError(f"{op}: {name} must have {num_dims} dimensions, got {_described(tensor)}")


def check_rows(op: str, name: str, x: Tensor) -> tuple[int, int]:
    """(rows, features) of the tensor that gives them to the others."""
    check_floating(op, name, x, 2)
    check_tensor(op, name, x, x.dtype, x.shape, x.device)
    if x.shape[1] < 1:
        raise ValueError(f"{op}: {name} must have at least one feature, got {list(x.shape)}")
    return x.shape[0], x.shape[1]


def check_last_rows(op: str, name: str, tangent: Tensor, x: Tensor) -> None:
    """The tangent of the last rows of x.

    Raises:
        TypeError, ValueError: it is not.
    """
    check_floating(op, name, tangent, 2)
    check_floats(op, x.device, **{name: (tangent, (len(tangent), x.shape[1]))})
    if len(tangent) > len(x):
        raise ValueError(
            f"{op}: {name} is of the last rows of x, which has {len(x)}, got {_described(tangent)}"
        )


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


def check_dropout(op: str, p: float, rng: Tensor, site: int, device: torch.device) -> None:
    """Dropout's arguments but for the elements' indices.

    Raises:
        TypeError, ValueError: as ``check_tensor``; p or site is out of range.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{op}: p must be in [0, 1), got {p}")
    if not 0 <= site < 2**32:
        raise ValueError(f"{op}: site must be in [0, 2^32), got {site}")
    check_tensor(op, "rng", rng, torch.int64, (2,), device)


def check_written(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple, device: torch.device
) -> None:
    """A result that must be contiguous.

    Raises:
        TypeError, ValueError: as ``check_tensor``; it has gaps.
    """
    check_tensor(op, name, tensor, dtype, shape, device)
    if not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} is written and must be contiguous, got strides {tensor.stride()}"
        )


def check_written_statistics(
    op: str, device: torch.device, num_rows: int, **tensors: Tensor
) -> None:
    for name, x in tensors.items():
        check_written(op, name, x, torch.float32, (num_rows,), device)


def check_written_rows(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple, device: torch.device
) -> None:
    """A result [rows, columns] whose rows are dense; it may be columns of a wider matrix.

    Raises:
        TypeError, ValueError: as ``check_tensor``; rows have gaps or overlap.
    """
    check_tensor(op, name, tensor, dtype, shape, device)
    num_rows, width = shape
    is_dense = tensor.stride(1) == 1 or width == 1
    if not is_dense or (num_rows > 1 and tensor.stride(0) < width):
        raise ValueError(
            f"{op}: {name} is written and needs dense rows that do not overlap, got strides "
            f"{tensor.stride()}; pass a contiguous tensor or columns of one"
        )


def dense_rows(x: Tensor) -> Tensor:
    """The matrix itself if its columns are contiguous, wherever its rows lie; else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def strided(x: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix with dense rows and how far they are apart, as kernels take it; None as it is."""
    if x is None:
        return None, 0
    x = dense_rows(x)
    return x, x.stride(0)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
