"""What kernels on rows of features share: launch choices, a row's dropout factors, column sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .philox import block_words, dropout_factors, element_words

MAX_WIDTH = 8192  # a row is held in registers: 16 elements a thread at 16 warps

SUM_ROWS, SUM_COLUMNS = 32, 64  # partial sums per tile: two full 128-byte lines of float32 a row


def row_launch(width: int) -> dict[str, int]:
    """BLOCK, the smallest power of 2 that holds a row, and num_warps.

    Eight elements a thread: a 16-byte load of bfloat16, two of float32, two Philox blocks.
    """
    block = max(triton.next_power_of_2(width), 16)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def rows_per_program(num_rows: int) -> int:
    """Rows that one program adds up before it stores a partial sum.

    At four rows the partial sums are 30 % of the rows' own bytes and mostly stay in L2; from 2,048
    rows on there are 512 programs, a few for each multiprocessor. Depends on nothing but the number
    of rows, so the order of the sums is the same on every device.
    """
    return max(4, triton.cdiv(num_rows, 512))


@triton.jit
def row_factors(p_offset, stream, threshold, scale, BLOCK: tl.constexpr, DROPS: tl.constexpr):
    """Dropout's factors of a row, float32 [BLOCK]; p_offset points at its first element's index."""
    if DROPS:
        i_first = tl.load(p_offset)
        if i_first % 4 == 0:
            i_block = (i_first >> 2) + tl.arange(0, BLOCK // 4)[None, :]
            b_words = tl.reshape(block_words(i_block, stream), (BLOCK,))
        else:
            b_words = element_words(i_first + tl.arange(0, BLOCK), stream)
        return dropout_factors(b_words, threshold, scale)
    else:
        return tl.full((BLOCK,), 1.0, tl.float32)


@triton.jit
def load_float(p_row, o, m):
    """Elements ``o`` of a row as float32, 0 where ``m`` is False."""
    return tl.load(p_row + o, mask=m, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_partial"])
def _column_sums_kernel(
    p_partial,  # float32 [num_partial, num_sums, width]
    p_out,  # float32 [num_sums, width]
    num_partial,
    num_sums,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_sum = tl.program_id(0)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < width
    b_total = tl.zeros((COLUMNS,), tl.float32)
    for i_first in range(0, num_partial, ROWS):
        o_row = i_first + tl.arange(0, ROWS)
        o = (o_row.to(tl.int64) * num_sums + i_sum)[:, None] * width + o_column[None, :]
        m = (o_row < num_partial)[:, None] & m_column[None, :]
        b_total += tl.sum(tl.load(p_partial + o, mask=m, other=0.0), axis=0)
    tl.store(p_out + i_sum * width + o_column, b_total, mask=m_column)


def column_sums(partial: Tensor) -> Tensor:
    """Sums of float32 [num_partial, num_sums, width] over its first dimension, in its order."""
    num_partial, num_sums, width = partial.shape
    out = torch.empty(num_sums, width, dtype=torch.float32, device=partial.device)
    grid = (num_sums, triton.cdiv(width, SUM_COLUMNS))
    numbers = num_partial, num_sums, width
    launch(_column_sums_kernel, grid, partial, out, *numbers, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS)
    return out
