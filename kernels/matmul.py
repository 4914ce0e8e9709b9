"""A matrix product into given memory: torch's, which no kernel of ours would beat."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_dimensions, check_rows, check_tensor, check_written_rows
from .write_set import check_write_set


def mm_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a [rows, inner] times b [inner, columns], all of one dtype, into out [rows, columns].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    op, (num_rows, num_inner) = "mm_into", check_rows("mm_into", "a", a)
    check_dimensions(op, "b", b, 2)
    check_tensor(op, "b", b, a.dtype, (num_inner, b.shape[1]), a.device)
    check_written_rows(op, "out", out, a.dtype, (num_rows, b.shape[1]), a.device)
    check_write_set(op, {"out": out}, {"a": a, "b": b})
    torch.mm(a, b, out=out)  # which counts the change itself
