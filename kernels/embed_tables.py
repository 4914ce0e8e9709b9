"""The gradients of embed's tables: sums of rows over the tokens that read them, without atomics.

The tokens come sorted by row. Sums end where a row ends, or after ``CHUNK`` sorted tokens, and a
second kernel adds up those of a row that has several: so rows that many tokens read (a type, a
position, ``[CLS]``) are shared out among programs as all others are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous

CHUNK = 128
"""Sorted tokens after which a sum ends; a row of the table that more tokens read has several."""


@triton.jit
def _sorted_token(p_order, o, num_tokens, m):
    """The token at a place of the order; the host cannot see that it is one."""
    return tl.minimum(tl.maximum(tl.load(p_order + o, mask=m, other=0), 0), num_tokens - 1)


@triton.jit
def _sorted_row(p_index, p_order, o, num_tokens):
    """The table's row that the token at a place of the order reads; -1 where there is none."""
    m = (o >= 0) & (o < num_tokens)
    return tl.load(p_index + _sorted_token(p_order, o, num_tokens, m), mask=m, other=-1)


@triton.jit(do_not_specialize=["num_tokens"])
def _table_kernel(
    p_ds,  # float32 [num_tokens, width]
    p_index,  # int64 [num_tokens], the table's rows that tokens read
    p_order,  # int64 [num_tokens], the tokens by ascending row
    p_partial,  # float32 [num_chunks, 2, width]: sums that go on before, and behind the chunk
    p_table,  # [num_rows, width], the table's gradient, zeros
    num_tokens,
    num_rows,
    width,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The first token of each row, or of a chunk, adds up all of that row's in the chunk."""
    await_previous()
    i_token = tl.program_id(0)
    i_chunk = i_token // CHUNK
    i_row = _sorted_row(p_index, p_order, i_token, num_tokens)
    is_start = i_row != _sorted_row(p_index, p_order, i_token - 1, num_tokens)
    if (is_start | (i_token % CHUNK == 0)) & (i_row >= 0) & (i_row < num_rows):
        o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < width
        i_end = tl.minimum((i_chunk + 1) * CHUNK, num_tokens)
        b_total = tl.zeros((COLUMNS,), tl.float32)
        num_found = TOKENS
        while num_found == TOKENS:
            o_place = i_token + tl.arange(0, TOKENS)
            m_token = o_place < i_end
            m_token = m_token & (_sorted_row(p_index, p_order, o_place, num_tokens) == i_row)
            o_token = _sorted_token(p_order, o_place, num_tokens, m_token)
            p_tile = p_ds + o_token[:, None] * width + o_column[None, :]
            m_tile = m_token[:, None] & m_column[None, :]
            b_total += tl.sum(tl.load(p_tile, mask=m_tile, other=0.0), axis=0)
            num_found = tl.sum(m_token.to(tl.int32), axis=0)
            i_token += TOKENS
        goes_on = _sorted_row(p_index, p_order, i_end, num_tokens) == i_row
        if is_start & (goes_on == 0):
            tl.store(p_table + i_row * width + o_column, b_total, mask=m_column)
        else:
            p_sum = p_partial + (2 * i_chunk + is_start.to(tl.int32)) * width
            tl.store(p_sum + o_column, b_total, mask=m_column)


@triton.jit(do_not_specialize=["num_tokens", "num_chunks"])
def _join_kernel(
    p_partial,  # as _table_kernel leaves it
    p_index,
    p_order,
    p_table,
    num_tokens,
    num_chunks,
    num_rows,
    width,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The chunk where a row begins that goes on behind it adds up that row's partial sums."""
    await_previous()
    i_chunk = tl.program_id(0)
    i_end = (i_chunk + 1) * CHUNK
    i_row = _sorted_row(p_index, p_order, i_end - 1, num_tokens)
    goes_on = _sorted_row(p_index, p_order, i_end, num_tokens) == i_row
    is_begun = _sorted_row(p_index, p_order, i_chunk * CHUNK - 1, num_tokens) == i_row
    if goes_on & (is_begun == 0) & (i_row >= 0) & (i_row < num_rows):
        o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < width
        p_column = p_partial + o_column
        b_total = tl.load(p_column + (2 * i_chunk + 1) * width, mask=m_column, other=0.0)
        num_found = TOKENS
        while num_found == TOKENS:
            o_chunk = i_chunk + 1 + tl.arange(0, TOKENS)
            m_chunk = o_chunk < num_chunks
            i_rows = _sorted_row(p_index, p_order, o_chunk * CHUNK, num_tokens)
            m_chunk = m_chunk & (i_rows == i_row)
            m_tile = m_chunk[:, None] & m_column[None, :]
            p_tile = p_column[None, :] + (2 * o_chunk * width)[:, None]
            b_total += tl.sum(tl.load(p_tile, mask=m_tile, other=0.0), axis=0)
            num_found = tl.sum(m_chunk.to(tl.int32), axis=0)
            i_chunk += TOKENS
        tl.store(p_table + i_row * width + o_column, b_total, mask=m_column)


def table_gradient_into(ds: Tensor, index: Tensor, order: Tensor | None, gradient: Tensor) -> None:
    """Sums of the rows of ds by the row of the table that their tokens read; other rows are 0.

    Args:
        ds: float32 [num_tokens, width].
        index: int64 [num_tokens], rows of the table; those it lacks get no sum.
        order: int64 [num_tokens], its stable argsort; made if None.
        gradient: [num_rows, width], contiguous.
    """
    gradient.zero_()
    num_tokens, width = ds.shape
    order = index.argsort(stable=True) if order is None else order.contiguous()
    sorted_by = index.contiguous(), order
    tile, num_chunks = TABLE["embed table"].constants, triton.cdiv(num_tokens, CHUNK)
    partial, strips = ds.new_empty(num_chunks, 2, width), triton.cdiv(width, tile["COLUMNS"])
    launch(
        _table_kernel, (num_tokens, strips), ds, *sorted_by, partial, gradient, num_tokens,
        *gradient.shape, CHUNK=CHUNK, **tile,
    )  # fmt: skip
    launch(
        _join_kernel, (max(num_chunks - 1, 0), strips), partial, *sorted_by, gradient, num_tokens,
        num_chunks, *gradient.shape, CHUNK=CHUNK, **tile,
    )  # fmt: skip
