"""What kernels on rows of features share: launch choices, a row's dropout factors, column sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_dropout, check_indices
from .launch import launch
from .launch_table import TABLE
from .philox import dropout_factors, dropout_numbers, row_words
from .previous_kernel import await_previous

MAX_WIDTH = 8192  # a row is held in registers: 16 elements a thread at 16 warps


@dataclass(frozen=True)
class RowDropout:
    """Which elements of rows are dropped.

    Attributes:
        p: the probability. rng: int64 [2], (seed, step). site: which dropout of the model.
        offsets: int64 [num_rows], the logical index of each row's first element.
    """

    p: float
    rng: Tensor
    site: int
    offsets: Tensor

    def check(self, op: str, num_rows: int, device: torch.device) -> None:
        check_dropout(op, self.p, self.rng, self.site, device)
        check_indices(op, device, num_rows, offsets=self.offsets)

    def read(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"rng": self.rng, "offsets": self.offsets}

    def arguments(self) -> tuple:
        """p_offsets, p_rng, site, threshold and scale of a kernel."""
        tensors = self.offsets.contiguous(), self.rng.contiguous()
        return *tensors, self.site, *dropout_numbers(self.p)


def row_block(width: int) -> int:
    """Features of a program, a power of 2."""
    return max(triton.next_power_of_2(width), 16)


def row_tile(op: str, width: int) -> dict[str, int]:
    """ROWS and BLOCK, a row or several narrow ones, and num_warps.

    Where the table has no such width, eight elements a thread: a 16-byte load of bfloat16, two of
    float32, two Philox blocks. Several rows of 384 features in a program would share loads of the
    weights, but Triton then goes through shared memory between every two of its layouts (13
    barriers for 3, by the assembly).
    """
    block = row_block(width)
    if known := TABLE.get(f"{op} {block}"):
        return {"BLOCK": block, **known.constants}
    rows = max(1, 512 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // 256, 1), 16)}


def tiles_per_program(num_rows: int, rows: int) -> int:
    """Tiles of so many rows that one program adds up before it stores a partial sum.

    With four rows the partial sums are 30 % of the rows' own bytes and mostly stay in L2; from
    2,048 rows on there are 512 programs, a few for each multiprocessor. Depends on nothing but the
    shape, so the order of the sums is the same on every device.
    """
    return max(triton.cdiv(4, rows), triton.cdiv(num_rows, 512 * rows))


@triton.jit
def tile_rows(i_tile, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(rows [ROWS, 1], features [1, BLOCK], mask of both) of a tile."""
    o_row = i_tile * ROWS + tl.arange(0, ROWS)[:, None]
    o = tl.arange(0, BLOCK)[None, :]
    return o_row, o, (o_row < num_rows) & (o < width)


@triton.jit
def row_factors(p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr):
    """Dropout's factors, float32 [ROWS, BLOCK]; dropout is (stream, threshold, scale).

    p_offsets points at the index of each row's first element.
    """
    if DROPS:
        i_first = tl.reshape(o_row, (o_row.shape[0],))
        i_first = tl.load(p_offsets + i_first, mask=i_first < num_rows, other=0)
        if tl.max(i_first % 4, axis=0) == 0:
            b_words = row_words(i_first, BLOCK, dropout[0], True)
        else:
            b_words = row_words(i_first, BLOCK, dropout[0], False)
        return dropout_factors(b_words, dropout[1], dropout[2])
    else:
        return tl.full((o_row.shape[0], BLOCK), 1.0, tl.float32)


@triton.jit
def load_float(p, o, m):
    """Elements ``o`` as float32, 0 where ``m`` is False."""
    return tl.load(p + o, mask=m, other=0.0).to(tl.float32)


@triton.jit
def store_rows(p, stride, o_row, o, m, b_rows):
    """Rows [ROWS, BLOCK] of a matrix whose rows are ``stride`` apart; none if p is None."""
    if p is not None:
        tl.store(p + o_row * stride + o, b_rows, mask=m)


@triton.jit
def store_sum(p_sum, b_rows, width):
    """The sum over the rows of [ROWS, BLOCK], into [width]."""
    o = tl.arange(0, b_rows.shape[1])
    tl.store(p_sum + o, tl.sum(b_rows, axis=0), mask=o < width)


@triton.jit
def _store_total(p_sum, is_its_program, o_column, b_total, m_column):
    if p_sum is not None:  # noqa: SIM102 - this is known to the compiler, the other is not
        if is_its_program:
            tl.store(p_sum + o_column, b_total, mask=m_column)


@triton.jit(do_not_specialize=["num_partial"])
def _column_sums_kernel(
    p_partial,  # float32 [num_partial, num_sums, width]
    p_first,  # [width], as the next two; those that are None are not wanted
    p_second,
    p_third,
    num_partial,
    num_sums,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    await_previous()
    i_sum = tl.program_id(0)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < width
    b_total = tl.zeros((COLUMNS,), tl.float32)
    for i_first in range(0, num_partial, ROWS):
        o_row = i_first + tl.arange(0, ROWS)
        o = (o_row.to(tl.int64) * num_sums + i_sum)[:, None] * width + o_column[None, :]
        m = (o_row < num_partial)[:, None] & m_column[None, :]
        b_total += tl.sum(tl.load(p_partial + o, mask=m, other=0.0), axis=0)
    _store_total(p_first, i_sum == 0, o_column, b_total, m_column)
    _store_total(p_second, i_sum == 1, o_column, b_total, m_column)
    _store_total(p_third, i_sum == 2, o_column, b_total, m_column)


def column_sums_into(partial: Tensor, *sums: Tensor | None) -> None:
    """Sums over the first dimension of float32 [num_partial, num_sums <= 3, width], in its order.

    Each goes into a tensor [width] of any dtype, or nowhere.
    """
    num_partial, num_sums, width = partial.shape
    three = (*sums, None, None)[:3]
    tile = TABLE["column sums"].constants
    grid = (num_sums, triton.cdiv(width, tile["COLUMNS"]))
    launch(_column_sums_kernel, grid, partial, *three, num_partial, num_sums, width, **tile)
