"""What the tests of the row ops' CUDA kernels, executed on the CPU, have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cuda_on_cpu import library


def dense_rows(x: Tensor) -> Tensor:
    """As the bindings hand rows over: elements of a row side by side."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def with_stride(x: Tensor | None) -> tuple[Tensor | None, int]:
    """A pointer to rows and how many elements lie between them."""
    return (None, 0) if x is None else (x, x.stride(0))


def unwritten(*shape: int, dtype: torch.dtype = torch.float32, gap: int = 0) -> Tensor:
    """Memory full of NaN, that a kernel must fill; ``gap`` elements lie between rows."""
    whole = torch.full((*shape[:-1], shape[-1] + gap), float("nan"), dtype=dtype)
    return whole[..., : shape[-1]]


def layer_sums(x: Tensor, weights: Tensor | None, out: Tensor, seed: int = 0) -> None:
    """Of x [num_layers, num_rows, width] with dense rows, into out [num_layers, width]."""
    read = *x.shape, x.dtype, x, *x.stride()[:2], weights, 0 if weights is None else len(weights)
    library("column_sums").call("sums", *read, out, out.stride(0), None, seed=seed)


def column_sums(partial: Tensor, seed: int = 0) -> Tensor:
    """The sums of a matrix's columns, by the kernel."""
    out = unwritten(1, partial.shape[1])
    layer_sums(partial[None], None, out, seed)
    return out[0]


def num_row_blocks(op: str, num_rows: int) -> int:
    """How many blocks of rows leave column sums."""
    count = torch.zeros(1, dtype=torch.int64)
    library(op).call("row_blocks", num_rows, count)
    return int(count)
