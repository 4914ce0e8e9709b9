"""Attention where a tile holds all keys of a (sequence, head): no running softmax.

Forward may split the queries among programs; backward and tangent hold all of them, so nothing is
combined. With the row of probabilities at hand, they are divided by their sum once more and summed
over exactly. Mathematics: docs/math/attention.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_parts import (
    LOG2E,
    kept_probabilities,
    load_numbers,
    load_rows,
    locate,
    product,
    scores,
    store_numbers,
    store_rows,
)
from .previous_kernel import await_previous


@triton.jit(do_not_specialize=["site", "threshold"])
def forward_tile_kernel(
    p_query, p_key, p_value, p_out,  # [num_tokens, num_heads * HEAD_DIM]; rows strides apart
    p_logsumexp,  # float32 [num_tokens, num_heads]
    p_cu_seqlens,  # int32 [num_sequences + 1]
    p_rows,  # int64 [num_sequences]
    p_rng,  # int64 [2]
    query_stride, key_stride, value_stride, out_stride,
    num_heads, max_positions, site, threshold, scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    await_previous()
    place = locate(p_cu_seqlens, num_heads)
    i_query = tl.program_id(1) * BLOCK_QUERY
    if i_query >= place[3]:
        return
    o_query, o_key = i_query + tl.arange(0, BLOCK_QUERY), tl.arange(0, BLOCK_KEY)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
    b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
    b_scores = scores(b_query, b_key, o_key < place[3], HEAD_DIM)
    b_max = tl.max(b_scores, axis=1)
    b_prob = tl.exp2(b_scores - b_max[:, None])
    b_sum = tl.sum(b_prob, axis=1)
    store_numbers(p_logsumexp, (b_max + tl.log2(b_sum)) / LOG2E, num_heads, place, o_query)
    if DROPOUT:
        dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
        m_kept = kept_probabilities(dropout, place, o_query, 0, BLOCK_KEY, ALIGNED)
        b_prob = tl.where(m_kept, b_prob, 0.0)
    b_out = product(b_prob.to(b_value.dtype), b_value) * (scale / b_sum)[:, None]
    store_rows(p_out, out_stride, b_out, place, o_query, HEAD_DIM)


@triton.jit
def _probabilities(b_query, b_key, b_logsumexp, m_key, HEAD_DIM: tl.constexpr):
    """The softmax of whole rows; logsumexp, which is rounded, only keeps exponents in range."""
    b_scores = scores(b_query, b_key, m_key, HEAD_DIM)
    b_prob = tl.exp2(b_scores - (b_logsumexp * LOG2E)[:, None])
    return b_prob / tl.sum(b_prob, axis=1)[:, None]


@triton.jit(do_not_specialize=["site", "threshold"])
def backward_tile_kernel(
    p_grad, p_query, p_key, p_value,  # [num_tokens, num_heads * HEAD_DIM]; rows strides apart
    p_dquery, p_dkey, p_dvalue,  # likewise, each a part of rows of WIDTHS such widths
    p_logsumexp,  # float32 [num_tokens, num_heads]
    p_cu_seqlens,  # int32 [num_sequences + 1]
    p_rows,  # int64 [num_sequences]
    p_rng,  # int64 [2]
    grad_stride, query_stride, key_stride, value_stride,
    num_heads, max_positions, site, threshold, scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTHS: tl.constexpr,
):  # fmt: skip
    await_previous()
    stride = num_heads * HEAD_DIM * WIDTHS  # strides of their own would take registers to a spill
    place = locate(p_cu_seqlens, num_heads)
    o_query, o_key = tl.arange(0, BLOCK_QUERY), tl.arange(0, BLOCK_KEY)
    b_grad = load_rows(p_grad, grad_stride, place, o_query, HEAD_DIM)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
    b_logsumexp = load_numbers(p_logsumexp, num_heads, place, o_query)
    b_prob = _probabilities(b_query, b_key, b_logsumexp, o_key < place[3], HEAD_DIM)
    b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
    b_prob_grad = product(b_grad, tl.trans(b_value))
    b_dropped = b_prob
    if DROPOUT:
        dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
        m_kept = kept_probabilities(dropout, place, o_query, 0, BLOCK_KEY, ALIGNED)
        b_dropped = tl.where(m_kept, b_prob * scale, 0.0)
        b_prob_grad = tl.where(m_kept, b_prob_grad * scale, 0.0)
    b_dvalue = product(tl.trans(b_dropped.to(b_grad.dtype)), b_grad)
    store_rows(p_dvalue, stride, b_dvalue, place, o_key, HEAD_DIM)
    b_mean = tl.sum(b_prob * b_prob_grad, axis=1)
    b_score_grad = (b_prob * (b_prob_grad - b_mean[:, None])).to(b_key.dtype)
    b_dquery = product(b_score_grad, b_key) * HEAD_DIM**-0.5
    store_rows(p_dquery, stride, b_dquery, place, o_query, HEAD_DIM)
    b_dkey = product(tl.trans(b_score_grad), b_query) * HEAD_DIM**-0.5
    store_rows(p_dkey, stride, b_dkey, place, o_key, HEAD_DIM)


@triton.jit(do_not_specialize=["site", "threshold"])
def jvp_tile_kernel(
    p_query, p_key, p_value,  # [num_tokens, num_heads * HEAD_DIM]; rows strides apart
    p_query_tangent, p_key_tangent, p_value_tangent, p_out,  # likewise
    p_logsumexp,  # float32 [num_tokens, num_heads]
    p_cu_seqlens,  # int32 [num_sequences + 1]
    p_rows,  # int64 [num_sequences]
    p_rng,  # int64 [2]
    query_stride, key_stride, value_stride,
    query_tangent_stride, key_tangent_stride, value_tangent_stride, out_stride,
    num_heads, max_positions, site, threshold, scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    await_previous()
    place = locate(p_cu_seqlens, num_heads)
    o_query, o_key = tl.arange(0, BLOCK_QUERY), tl.arange(0, BLOCK_KEY)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
    b_query_tangent = load_rows(p_query_tangent, query_tangent_stride, place, o_query, HEAD_DIM)
    b_key_tangent = load_rows(p_key_tangent, key_tangent_stride, place, o_key, HEAD_DIM)
    b_logsumexp = load_numbers(p_logsumexp, num_heads, place, o_query)
    b_prob = _probabilities(b_query, b_key, b_logsumexp, o_key < place[3], HEAD_DIM)
    b_tangent = product(b_query_tangent, tl.trans(b_key))
    b_tangent = (b_tangent + product(b_query, tl.trans(b_key_tangent))) * HEAD_DIM**-0.5
    b_tangent -= tl.sum(b_prob * b_tangent, axis=1)[:, None]
    if DROPOUT:
        dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
        m_kept = kept_probabilities(dropout, place, o_query, 0, BLOCK_KEY, ALIGNED)
        b_prob = tl.where(m_kept, b_prob * scale, 0.0)
    b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
    b_value_tangent = load_rows(p_value_tangent, value_tangent_stride, place, o_key, HEAD_DIM)
    b_out = product((b_prob * b_tangent).to(b_value.dtype), b_value)
    b_out += product(b_prob.to(b_value.dtype), b_value_tangent)
    store_rows(p_out, out_stride, b_out, place, o_query, HEAD_DIM)
