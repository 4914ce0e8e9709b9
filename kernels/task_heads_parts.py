"""What the kernels of ``task_heads`` share: vectors, features and cosines of an example."""

from __future__ import annotations

import triton
import triton.language as tl

COSINE_EPS = tl.constexpr(1e-6)


@triton.jit
def vector(p_pooled, stride, p_factors, factors_stride, i_row, o, m):
    """Features ``o`` of a pooled vector, times its factors."""
    b_x = tl.load(p_pooled + i_row * stride + o, mask=m, other=0.0)
    if p_factors is not None:
        b_x *= tl.load(p_factors + i_row * factors_stride + o, mask=m, other=0.0)
    return b_x


@triton.jit
def sign(b_x):
    return (b_x > 0).to(tl.float32) - (b_x < 0).to(tl.float32)


@triton.jit
def example_of(p_head, index):
    """(first sequence of an example, its second, number of the output) of a flat output."""
    num_outputs = tl.load(p_head + 3)
    of_head = index - tl.load(p_head + 6)
    i_step = tl.where(tl.load(p_head) == 0, 0, 1)
    i_first = tl.load(p_head + 2) + of_head // num_outputs * (1 + i_step)
    return i_first, i_first + i_step, of_head % num_outputs


@triton.jit
def weights_of(p_weights, p_head, i_output, hidden):
    """The row of weights of an output."""
    return p_weights + tl.load(p_head + 4) + i_output * tl.load(p_head + 8) * hidden


@triton.jit
def part_masks(o, m, num_vectors, hidden):
    """Masks of features ``o`` of the second and third parts of a row of weights."""
    return m & (o < (num_vectors - 1) * hidden), m & (o < (num_vectors - 2) * hidden)


@triton.jit
def apply_weights(p_w, num_vectors, hidden, o, m, b_u, b_v, b_difference):
    """The parts of a row of weights times those of the features."""
    b_sum = tl.load(p_w + o, mask=m, other=0.0) * b_u
    m_v, m_difference = part_masks(o, m, num_vectors, hidden)
    b_sum += tl.load(p_w + hidden + o, mask=m_v, other=0.0) * b_v
    return b_sum + tl.load(p_w + 2 * hidden + o, mask=m_difference, other=0.0) * b_difference


@triton.jit
def cosine(scale, uv, uu, vv):
    """(value, across, along_u, along_v): ``Cosine`` of csrc/common/task_heads.h."""
    u, v = tl.sqrt(uu), tl.sqrt(vv)
    across = scale / (tl.maximum(u, COSINE_EPS) * tl.maximum(v, COSINE_EPS))
    value = uv * across
    is_short_u, is_short_v = u < COSINE_EPS, v < COSINE_EPS
    along_u = tl.where(is_short_u, 0.0, value / tl.where(is_short_u, 1.0, uu))
    along_v = tl.where(is_short_v, 0.0, value / tl.where(is_short_v, 1.0, vv))
    return value, across, along_u, along_v


@triton.jit
def cosine_of(rows, i_u, i_v, scale, hidden, BLOCK: tl.constexpr):
    """``cosine`` of two sequences; rows: pooled vectors and factors with their strides."""
    b_uv = tl.zeros((BLOCK,), tl.float64)
    b_uu, b_vv = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, hidden, BLOCK):
        o = start + tl.arange(0, BLOCK)
        m = o < hidden
        b_u = vector(rows[0], rows[1], rows[2], rows[3], i_u, o, m).to(tl.float64)
        b_v = vector(rows[0], rows[1], rows[2], rows[3], i_v, o, m).to(tl.float64)
        b_uv += b_u * b_v
        b_uu += b_u * b_u
        b_vv += b_v * b_v
    return cosine(scale, tl.sum(b_uv, axis=0), tl.sum(b_uu, axis=0), tl.sum(b_vv, axis=0))


@triton.jit
def cosine_tangent(rows, tangent, i_u, i_v, scale, hidden, BLOCK: tl.constexpr):
    """The tangent of a cosine; tangent: pointer and stride."""
    _, across, along_u, along_v = cosine_of(rows, i_u, i_v, scale, hidden, BLOCK)
    b_across = tl.zeros((BLOCK,), tl.float64)
    b_u_du, b_v_dv = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, hidden, BLOCK):
        o = start + tl.arange(0, BLOCK)
        m = o < hidden
        b_u = vector(rows[0], rows[1], rows[2], rows[3], i_u, o, m).to(tl.float64)
        b_v = vector(rows[0], rows[1], rows[2], rows[3], i_v, o, m).to(tl.float64)
        b_du = vector(tangent[0], tangent[1], rows[2], rows[3], i_u, o, m).to(tl.float64)
        b_dv = vector(tangent[0], tangent[1], rows[2], rows[3], i_v, o, m).to(tl.float64)
        b_across += b_v * b_du + b_u * b_dv
        b_u_du += b_u * b_du
        b_v_dv += b_v * b_dv
    along = along_u * tl.sum(b_u_du, axis=0) + along_v * tl.sum(b_v_dv, axis=0)
    return across * tl.sum(b_across, axis=0) - along
