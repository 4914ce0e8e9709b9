"""Attention of sequences longer than a tile: a program per block of queries or of keys, and a loop
over the blocks of the other side. No two programs write to the same place.

Mathematics: docs/math/attention.md; the running softmax: arXiv 1805.02867.
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
def forward_loop_kernel(
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
    o_query = i_query + tl.arange(0, BLOCK_QUERY)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_max = tl.full((BLOCK_QUERY,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_QUERY,), tl.float32)
    b_out = tl.zeros((BLOCK_QUERY, HEAD_DIM), tl.float32)
    for i_key in range(0, place[3], BLOCK_KEY):
        o_key = i_key + tl.arange(0, BLOCK_KEY)
        b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
        b_scores = scores(b_query, b_key, o_key < place[3], HEAD_DIM)
        b_new_max = tl.maximum(b_max, tl.max(b_scores, axis=1))
        b_rescale = tl.exp2(b_max - b_new_max)
        b_prob = tl.exp2(b_scores - b_new_max[:, None])
        b_sum = b_sum * b_rescale + tl.sum(b_prob, axis=1)
        if DROPOUT:
            dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
            m_kept = kept_probabilities(dropout, place, o_query, i_key, BLOCK_KEY, ALIGNED)
            b_prob = tl.where(m_kept, b_prob, 0.0)
        b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
        b_out = b_out * b_rescale[:, None] + product(b_prob.to(b_value.dtype), b_value)
        b_max = b_new_max
    store_numbers(p_logsumexp, (b_max + tl.log2(b_sum)) / LOG2E, num_heads, place, o_query)
    store_rows(p_out, out_stride, b_out * (scale / b_sum)[:, None], place, o_query, HEAD_DIM)


@triton.jit(do_not_specialize=["site", "threshold"])
def backward_query_loop_kernel(
    p_grad, p_query, p_key, p_value,  # [num_tokens, num_heads * HEAD_DIM]; rows strides apart
    p_out, p_dquery,  # likewise
    p_logsumexp,  # float32 [num_tokens, num_heads]
    p_mean,  # float32 [num_tokens, num_heads], written for the other kernel
    p_cu_seqlens,  # int32 [num_sequences + 1]
    p_rows,  # int64 [num_sequences]
    p_rng,  # int64 [2]
    grad_stride, query_stride, key_stride, value_stride, out_stride, dquery_stride,
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
    o_query = i_query + tl.arange(0, BLOCK_QUERY)
    b_grad = load_rows(p_grad, grad_stride, place, o_query, HEAD_DIM)
    b_out = load_rows(p_out, out_stride, place, o_query, HEAD_DIM)
    b_mean = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), axis=1)
    store_numbers(p_mean, b_mean, num_heads, place, o_query)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_shift = load_numbers(p_logsumexp, num_heads, place, o_query) * LOG2E
    b_dquery = tl.zeros((BLOCK_QUERY, HEAD_DIM), tl.float32)
    for i_key in range(0, place[3], BLOCK_KEY):
        o_key = i_key + tl.arange(0, BLOCK_KEY)
        b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
        b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
        b_prob = tl.exp2(scores(b_query, b_key, o_key < place[3], HEAD_DIM) - b_shift[:, None])
        b_prob_grad = product(b_grad, tl.trans(b_value))
        if DROPOUT:
            dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
            m_kept = kept_probabilities(dropout, place, o_query, i_key, BLOCK_KEY, ALIGNED)
            b_prob_grad = tl.where(m_kept, b_prob_grad * scale, 0.0)
        b_score_grad = b_prob * (b_prob_grad - b_mean[:, None])
        b_dquery += product(b_score_grad.to(b_key.dtype), b_key)
    b_dquery *= HEAD_DIM**-0.5
    store_rows(p_dquery, dquery_stride, b_dquery, place, o_query, HEAD_DIM)


@triton.jit(do_not_specialize=["site", "threshold"])
def backward_key_loop_kernel(
    p_grad, p_query, p_key, p_value,  # [num_tokens, num_heads * HEAD_DIM]; rows strides apart
    p_dkey, p_dvalue,  # likewise
    p_logsumexp,  # float32 [num_tokens, num_heads]
    p_mean,  # float32 [num_tokens, num_heads]
    p_cu_seqlens,  # int32 [num_sequences + 1]
    p_rows,  # int64 [num_sequences]
    p_rng,  # int64 [2]
    grad_stride, query_stride, key_stride, value_stride, dkey_stride, dvalue_stride,
    num_heads, max_positions, site, threshold, scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    await_previous()
    place = locate(p_cu_seqlens, num_heads)
    i_key = tl.program_id(1) * BLOCK_KEY
    if i_key >= place[3]:
        return
    o_key = i_key + tl.arange(0, BLOCK_KEY)
    b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
    b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
    b_dkey = tl.zeros((BLOCK_KEY, HEAD_DIM), tl.float32)
    b_dvalue = tl.zeros((BLOCK_KEY, HEAD_DIM), tl.float32)
    for i_query in range(0, place[3], BLOCK_QUERY):
        o_query = i_query + tl.arange(0, BLOCK_QUERY)
        b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
        b_grad = load_rows(p_grad, grad_stride, place, o_query, HEAD_DIM)
        b_shift = load_numbers(p_logsumexp, num_heads, place, o_query) * LOG2E
        b_mean = load_numbers(p_mean, num_heads, place, o_query)
        b_prob = tl.exp2(scores(b_query, b_key, o_key < place[3], HEAD_DIM) - b_shift[:, None])
        b_prob_grad = product(b_grad, tl.trans(b_value))
        b_dropped = b_prob
        if DROPOUT:
            dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
            m_kept = kept_probabilities(dropout, place, o_query, i_key, BLOCK_KEY, ALIGNED)
            b_dropped = tl.where(m_kept, b_prob * scale, 0.0)
            b_prob_grad = tl.where(m_kept, b_prob_grad * scale, 0.0)
        b_dvalue += product(tl.trans(b_dropped.to(b_grad.dtype)), b_grad)
        b_score_grad = (b_prob * (b_prob_grad - b_mean[:, None])).to(b_query.dtype)
        b_dkey += product(tl.trans(b_score_grad), b_query)
    store_rows(p_dvalue, dvalue_stride, b_dvalue, place, o_key, HEAD_DIM)
    store_rows(p_dkey, dkey_stride, b_dkey * HEAD_DIM**-0.5, place, o_key, HEAD_DIM)


@triton.jit(do_not_specialize=["site", "threshold"])
def jvp_loop_kernel(
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
    i_query = tl.program_id(1) * BLOCK_QUERY
    if i_query >= place[3]:
        return
    o_query = i_query + tl.arange(0, BLOCK_QUERY)
    b_query = load_rows(p_query, query_stride, place, o_query, HEAD_DIM)
    b_query_tangent = load_rows(p_query_tangent, query_tangent_stride, place, o_query, HEAD_DIM)
    b_shift = load_numbers(p_logsumexp, num_heads, place, o_query) * LOG2E
    b_mean = tl.zeros((BLOCK_QUERY,), tl.float32)
    b_plain = tl.zeros((BLOCK_QUERY, HEAD_DIM), tl.float32)
    b_out = tl.zeros((BLOCK_QUERY, HEAD_DIM), tl.float32)
    for i_key in range(0, place[3], BLOCK_KEY):
        o_key = i_key + tl.arange(0, BLOCK_KEY)
        b_key = load_rows(p_key, key_stride, place, o_key, HEAD_DIM)
        b_key_tangent = load_rows(p_key_tangent, key_tangent_stride, place, o_key, HEAD_DIM)
        b_prob = tl.exp2(scores(b_query, b_key, o_key < place[3], HEAD_DIM) - b_shift[:, None])
        b_tangent = product(b_query_tangent, tl.trans(b_key))
        b_tangent = (b_tangent + product(b_query, tl.trans(b_key_tangent))) * HEAD_DIM**-0.5
        b_mean += tl.sum(b_prob * b_tangent, axis=1)
        if DROPOUT:
            dropout = p_rows, p_rng, site, threshold, num_heads, max_positions
            m_kept = kept_probabilities(dropout, place, o_query, i_key, BLOCK_KEY, ALIGNED)
            b_prob = tl.where(m_kept, b_prob * scale, 0.0)
        b_value = load_rows(p_value, value_stride, place, o_key, HEAD_DIM)
        b_value_tangent = load_rows(p_value_tangent, value_tangent_stride, place, o_key, HEAD_DIM)
        b_half = b_prob.to(b_value.dtype)
        b_plain += product(b_half, b_value)
        b_out += product((b_prob * b_tangent).to(b_value.dtype), b_value)
        b_out += product(b_half, b_value_tangent)
    b_out -= b_mean[:, None] * b_plain
    store_rows(p_out, out_stride, b_out, place, o_query, HEAD_DIM)
