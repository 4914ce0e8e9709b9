"""Pieces that attention's kernels share.

A program works for one (sequence, head); its ``place`` is (sequence, head, first token, length).
``dropout`` is (p_rows, p_rng, site, threshold, num_heads, max_positions). Scores are in units of
ln 2, so that probabilities are powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import kept, load_stream, row_words

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(
    p_cu_seqlens,  # int32 [num_sequences + 1]
    num_heads,
):
    """The ``place`` of this program."""
    i_sequence = tl.program_id(0) // num_heads
    i_head = tl.program_id(0) % num_heads
    start = tl.load(p_cu_seqlens + i_sequence)
    length = tl.load(p_cu_seqlens + i_sequence + 1) - start
    return i_sequence, i_head, start.to(tl.int64), length


@triton.jit
def _row_offsets(stride, place, o_row, HEAD_DIM: tl.constexpr):
    first = place[2] * stride + place[1] * HEAD_DIM
    return first + o_row[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit
def load_rows(
    p_matrix,  # [num_tokens, num_heads * HEAD_DIM], rows ``stride`` apart
    stride,
    place,
    o_row,
    HEAD_DIM: tl.constexpr,
):
    """Rows of the sequence at its head, [rows, HEAD_DIM]; zero beyond its end."""
    p_rows = p_matrix + _row_offsets(stride, place, o_row, HEAD_DIM)
    return tl.load(p_rows, mask=o_row[:, None] < place[3], other=0.0)


@triton.jit
def store_rows(
    p_matrix,  # [num_tokens, num_heads * HEAD_DIM], rows ``stride`` apart
    stride,
    b_rows,
    place,
    o_row,
    HEAD_DIM: tl.constexpr,
):
    """Writes [rows, HEAD_DIM], but for what is beyond the sequence's end."""
    p_rows = p_matrix + _row_offsets(stride, place, o_row, HEAD_DIM)
    tl.store(p_rows, b_rows.to(p_matrix.dtype.element_ty), mask=o_row[:, None] < place[3])


@triton.jit
def number_offsets(num_heads, place, o_row):
    """Where [num_tokens, num_heads] holds the numbers of these rows."""
    return (place[2] + o_row) * num_heads + place[1]


@triton.jit
def load_numbers(p_numbers, num_heads, place, o_row):
    """The rows' entries of float32 [num_tokens, num_heads]; zero beyond the sequence's end."""
    p_rows = p_numbers + number_offsets(num_heads, place, o_row)
    return tl.load(p_rows, mask=o_row < place[3], other=0.0)


@triton.jit
def store_numbers(p_numbers, b_numbers, num_heads, place, o_row):
    """Writes the rows' entries of float32 [num_tokens, num_heads]."""
    p_rows = p_numbers + number_offsets(num_heads, place, o_row)
    tl.store(p_rows, b_numbers, mask=o_row < place[3])


@triton.jit
def product(b_left, b_right):
    """Matrix product in float32; float32 factors are not rounded to tf32."""
    return tl.dot(b_left, b_right, input_precision="ieee")


@triton.jit
def scores(b_query, b_key, m_key, HEAD_DIM: tl.constexpr):
    """Scaled products [queries, keys] in units of ln 2; minus infinity where there is no key."""
    b_scores = product(b_query, tl.trans(b_key)) * (HEAD_DIM**-0.5 * LOG2E)
    return tl.where(m_key[None, :], b_scores, float("-inf"))


@triton.jit
def kept_probabilities(
    dropout, place, o_query, i_key, NUM_KEYS: tl.constexpr, ALIGNED: tl.constexpr
):
    """Which probabilities of queries ``o_query`` at keys i_key ... stay, bool [queries, keys]."""
    p_rows, p_rng, site, threshold, num_heads, max_positions = dropout
    i_row = tl.load(p_rows + place[0]) * num_heads + place[1]
    i_first = (i_row * max_positions + o_query) * max_positions + i_key
    return kept(row_words(i_first, NUM_KEYS, load_stream(p_rng, site), ALIGNED), threshold)
