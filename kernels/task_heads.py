"""The heads of a group of tasks and their derivatives: docs/math/task_heads.md.

A program has one output of an example, a stretch of a pooled vector's gradient, or a stretch of a
row of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_written_rows
from .head_checks import check_flat, check_heads, check_like, check_pooled
from .head_table import (
    COSINE,
    TABLE_FIELDS,
    Heads,
    check_places,
    head_of,
    head_of_sequence,
    head_tables,
    pooled_arguments,
    read_heads,
)
from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous
from .task_heads_parts import (
    apply_weights,
    cosine_of,
    cosine_tangent,
    example_of,
    part_masks,
    sign,
    vector,
    weights_of,
)
from .write_set import check_write_set, count_change


@triton.jit
def _forward_kernel(
    p_pooled,  # float32 [num_sequences, hidden], rows stride apart
    stride,
    p_factors,  # float32, the same, or None
    factors_stride,
    p_weights,  # float32 [num_weights]
    p_heads,  # int64 [num_heads, TABLE_FIELDS]
    p_scales,  # float64 [num_heads]
    p_out,  # float32 [num_outputs]
    num_heads,
    hidden,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    index = tl.program_id(0).to(tl.int64)
    i_head = head_of(p_heads, 6, index, num_heads, HEADS)
    p_head = p_heads + i_head * TABLE_FIELDS
    i_u, i_v, i_output = example_of(p_head, index)
    rows = (p_pooled, stride, p_factors, factors_stride)
    if tl.load(p_head) == COSINE:
        scale = tl.load(p_scales + i_head)
        value, _, _, _ = cosine_of(rows, i_u, i_v, scale, hidden, BLOCK)
        tl.store(p_out + index, value.to(tl.float32))
    else:
        p_w, num_vectors = weights_of(p_weights, p_head, i_output, hidden), tl.load(p_head + 8)
        b_sum = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, hidden, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m = o < hidden
            b_u = vector(p_pooled, stride, p_factors, factors_stride, i_u, o, m)
            b_v = vector(p_pooled, stride, p_factors, factors_stride, i_v, o, m)
            b_sum += apply_weights(p_w, num_vectors, hidden, o, m, b_u, b_v, tl.abs(b_u - b_v))
        bias = tl.load(p_weights + tl.load(p_head + 5) + i_output)
        tl.store(p_out + index, tl.sum(b_sum, axis=0) + bias)


@triton.jit
def _jvp_kernel(
    p_pooled,  # as in the forward
    stride,
    p_factors,
    factors_stride,
    p_weights,
    p_tangent,  # float32 [num_sequences, hidden], rows tangent_stride apart
    tangent_stride,
    p_heads,
    p_scales,
    p_out,  # float32 [num_outputs]
    num_heads,
    hidden,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    index = tl.program_id(0).to(tl.int64)
    i_head = head_of(p_heads, 6, index, num_heads, HEADS)
    p_head = p_heads + i_head * TABLE_FIELDS
    i_u, i_v, i_output = example_of(p_head, index)
    rows = (p_pooled, stride, p_factors, factors_stride)
    if tl.load(p_head) == COSINE:
        tangent, scale = (p_tangent, tangent_stride), tl.load(p_scales + i_head)
        value = cosine_tangent(rows, tangent, i_u, i_v, scale, hidden, BLOCK)
        tl.store(p_out + index, value.to(tl.float32))
    else:
        p_w, num_vectors = weights_of(p_weights, p_head, i_output, hidden), tl.load(p_head + 8)
        b_sum = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, hidden, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m = o < hidden
            b_u = vector(p_pooled, stride, p_factors, factors_stride, i_u, o, m)
            b_v = vector(p_pooled, stride, p_factors, factors_stride, i_v, o, m)
            b_du = vector(p_tangent, tangent_stride, p_factors, factors_stride, i_u, o, m)
            b_dv = vector(p_tangent, tangent_stride, p_factors, factors_stride, i_v, o, m)
            b_turned = sign(b_u - b_v) * (b_du - b_dv)
            b_sum += apply_weights(p_w, num_vectors, hidden, o, m, b_du, b_dv, b_turned)
        tl.store(p_out + index, tl.sum(b_sum, axis=0))


@triton.jit
def _linear_gradient(p_w, p_cotangents, p_head, b_sign, i_side, hidden, o, m):
    """Of features ``o`` of an example's first vector (side 0) or its second."""
    num_vectors = tl.load(p_head + 8)
    _, m_difference = part_masks(o, m, num_vectors, hidden)
    b_grad = 0.0 * b_sign
    for c in range(tl.load(p_head + 3)):
        p_row = p_w + c * num_vectors * hidden
        b_w = tl.load(p_row + i_side * hidden + o, mask=m, other=0.0)
        b_w += b_sign * tl.load(p_row + 2 * hidden + o, mask=m_difference, other=0.0)
        b_grad += tl.load(p_cotangents + c) * b_w
    return b_grad


@triton.jit
def _vjp_kernel(
    p_pooled,  # as in the forward
    stride,
    p_factors,
    factors_stride,
    p_weights,
    p_cotangents,  # float32 [num_outputs]
    p_heads,
    p_scales,
    p_dpooled,  # float32 [num_sequences, hidden], rows dpooled_stride apart
    dpooled_stride,
    num_heads,
    hidden,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = o < hidden
    i_head, is_there = head_of_sequence(p_heads, i_row, num_heads, HEADS)
    p_head = p_heads + i_head * TABLE_FIELDS
    p_to = p_dpooled + i_row * dpooled_stride + o
    if is_there:
        i_step = tl.where(tl.load(p_head) == 0, 0, 1)
        of_head = i_row - tl.load(p_head + 2)
        i_example, i_side = of_head // (1 + i_step), of_head % (1 + i_step)
        i_other = i_row + i_step - 2 * i_side
        b_own = vector(p_pooled, stride, p_factors, factors_stride, i_row, o, m)
        b_other = vector(p_pooled, stride, p_factors, factors_stride, i_other, o, m)
        p_c = p_cotangents + tl.load(p_head + 6) + i_example * tl.load(p_head + 3)
        b_ones = tl.full((BLOCK,), 1.0, tl.float32)
        b_factor = b_ones
        if p_factors is not None:
            b_factor = tl.load(p_factors + i_row * factors_stride + o, mask=m, other=0.0)
        if tl.load(p_head) == COSINE:
            rows = (p_pooled, stride, p_factors, factors_stride)
            scale = tl.load(p_scales + i_head)
            _, across, along, _ = cosine_of(rows, i_row, i_other, scale, hidden, BLOCK)
            b_grad = across * b_other.to(tl.float64) - along * b_own.to(tl.float64)
            b_grad = (tl.load(p_c).to(tl.float64) * b_grad).to(tl.float32)
            tl.store(p_to, b_grad * b_factor, mask=m)
        else:
            p_w, b_sign = p_weights + tl.load(p_head + 4), sign(b_own - b_other)
            b_grad = _linear_gradient(p_w, p_c, p_head, b_sign, i_side, hidden, o, m)
            tl.store(p_to, b_grad * b_factor, mask=m)
    else:
        tl.store(p_to, tl.zeros((BLOCK,), tl.float32), mask=m)


@triton.jit
def _weight_gradient(rows, p_cotangents, p_head, i_output, hidden, o):
    """Of weights ``o`` of an output's row, the bias behind the last; of one pass."""
    num_outputs, i_step = tl.load(p_head + 3), tl.where(tl.load(p_head) == 0, 0, 1)
    num_features = tl.load(p_head + 8) * hidden
    part, j = o // hidden, o % hidden
    m_u, m_v = (o < num_features) & (part != 1), (o < num_features) & (part != 0)
    p_c = p_cotangents + tl.load(p_head + 6) + i_output
    b_sum = tl.where(m_u, 0.0, 0.0)
    for i_example in range(tl.load(p_head + 1)):
        i_u = tl.load(p_head + 2) + i_example * (1 + i_step)
        b_u = vector(rows[0], rows[1], rows[2], rows[3], i_u, j, m_u)
        b_v = vector(rows[0], rows[1], rows[2], rows[3], i_u + i_step, j, m_v)
        b_x = tl.where(part == 2, tl.abs(b_u - b_v), b_u + b_v)
        b_x = tl.where(o == num_features, 1.0, b_x)
        b_sum += tl.load(p_c + i_example * num_outputs) * b_x
    return b_sum


@triton.jit
def _weight_gradients_kernel(
    p_pooled,  # as in the forward
    stride,
    p_factors,
    factors_stride,
    p_cotangents,  # float32 [num_outputs]
    p_other,  # of a second pass, or None
    other_stride,
    p_other_factors,
    other_factors_stride,
    p_other_cotangents,
    p_heads,
    p_dweights,  # float32 [num_weights]
    num_heads,
    hidden,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p_head = p_heads + head_of(p_heads, 7, i_row, num_heads, HEADS) * TABLE_FIELDS
    i_output = i_row - tl.load(p_head + 7)
    rows = (p_pooled, stride, p_factors, factors_stride)
    b_sum = _weight_gradient(rows, p_cotangents, p_head, i_output, hidden, o)
    if p_other is not None:
        rows = (p_other, other_stride, p_other_factors, other_factors_stride)
        b_sum += _weight_gradient(rows, p_other_cotangents, p_head, i_output, hidden, o)
    num_features = tl.load(p_head + 8) * hidden
    o_weight = tl.load(p_head + 4) + i_output * num_features + o
    o_place = tl.where(o == num_features, tl.load(p_head + 5) + i_output, o_weight)
    tl.store(p_dweights + o_place, b_sum, mask=o <= num_features)


def forward_into(
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    heads: Sequence[int],
    scales: Sequence[float],
    out: Tensor,
) -> None:
    """The outputs, float32 [num_outputs]."""
    op, read = "heads_forward", {"pooled": pooled, "factors": factors, "weights": weights}
    all_heads = check_heads(op, heads, scales, **read)
    check_flat(op, "out", out, all_heads.num_outputs, pooled.device, is_written=True)
    check_write_set(op, {"out": out}, read)
    inputs = *pooled_arguments(pooled, factors), weights.contiguous()
    _run(_forward_kernel, (out.numel(),), inputs, all_heads, scales, out)


def jvp_into(
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    pooled_tangent: Tensor,
    heads: Sequence[int],
    scales: Sequence[float],
    out: Tensor,
) -> None:
    """Their tangents, float32 [num_outputs]."""
    op, read = "heads_jvp", {"pooled": pooled, "factors": factors, "weights": weights}
    all_heads = check_heads(op, heads, scales, **read)
    check_like(op, "pooled_tangent", pooled_tangent, pooled)
    check_flat(op, "out", out, all_heads.num_outputs, pooled.device, is_written=True)
    check_write_set(op, {"out": out}, read | {"pooled_tangent": pooled_tangent})
    tangent = pooled_arguments(pooled_tangent, None)[:2]
    inputs = *pooled_arguments(pooled, factors), weights.contiguous(), *tangent
    _run(_jvp_kernel, (out.numel(),), inputs, all_heads, scales, out)


def vjp_into(
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    cotangents: Tensor,
    heads: Sequence[int],
    scales: Sequence[float],
    dpooled: Tensor,
) -> None:
    """The pooled vectors' gradient from the outputs'; zero in rows of no head."""
    op, read = "heads_vjp", {"pooled": pooled, "factors": factors, "weights": weights}
    all_heads = check_heads(op, heads, scales, **read)
    check_flat(op, "cotangents", cotangents, all_heads.num_outputs, pooled.device)
    check_written_rows(op, "dpooled", dpooled, torch.float32, tuple(pooled.shape), pooled.device)
    check_write_set(op, {"dpooled": dpooled}, read | {"cotangents": cotangents})
    inputs = *pooled_arguments(pooled, factors), weights.contiguous(), cotangents.contiguous()
    grid = pooled.shape[0], triton.cdiv(pooled.shape[1], _tile()["BLOCK"])
    _run(_vjp_kernel, grid, inputs, all_heads, scales, dpooled, dpooled.stride(0))


def weight_gradients_into(
    pooled: Tensor,
    factors: Tensor | None,
    cotangents: Tensor,
    other_pooled: Tensor | None,
    other_factors: Tensor | None,
    other_cotangents: Tensor | None,
    heads: Sequence[int],
    dweights: Tensor,
) -> None:
    """The weights' gradient, summed over one pass or two; elements of no head stay."""
    op = "heads_weight_gradients"
    check_pooled(op, pooled)
    all_heads = read_heads(op, heads, pooled.shape[1])
    others = {"other_pooled": other_pooled, "other_factors": other_factors}
    flat = {"cotangents": cotangents, "other_cotangents": other_cotangents}
    if (other_pooled is None) != (other_cotangents is None) or (
        other_pooled is None and other_factors is not None
    ):
        raise ValueError(
            f"{op}: other_pooled and other_cotangents come together, other_factors with them"
        )
    for name, x in {"factors": factors, **others}.items():
        check_like(op, name, x, pooled)
    for name, x in flat.items():
        if x is not None:
            check_flat(op, name, x, all_heads.num_outputs, pooled.device)
    check_flat(op, "dweights", dweights, None, pooled.device, is_written=True)
    check_places(op, all_heads, pooled.shape[0], "dweights", dweights.shape[0])
    read = {"pooled": pooled, "factors": factors, **others, **flat}
    check_write_set(op, {"dweights": dweights}, read)
    other_c = None if other_cotangents is None else other_cotangents.contiguous()
    inputs = (
        *pooled_arguments(pooled, factors), cotangents.contiguous(),
        *pooled_arguments(other_pooled, other_factors), other_c,
    )  # fmt: skip
    width = triton.cdiv(all_heads.num_features + 1, _tile()["BLOCK"])
    _run(_weight_gradients_kernel, (all_heads.num_weight_rows, width), inputs, all_heads, None,
         dweights)  # fmt: skip


def _tile() -> dict[str, int]:
    return TABLE["task_heads"].constants


def _run(
    kernel, grid: tuple, inputs: tuple, heads: Heads, scales, out: Tensor, *strides: int
) -> None:
    ones = (1.0,) * len(heads.fields)
    tables = head_tables(heads, ones if scales is None else tuple(scales), out.device)
    tables = tables[:1] if scales is None else tables
    numbers = *strides, len(heads.fields), heads.hidden
    launch(kernel, grid, *inputs, *tables, out, *numbers, HEADS=heads.tile, **_tile())
    count_change({"out": out})


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    hidden, outputs = 384, 5 + 1 + 1
    pooled = torch.empty(5, hidden, device="meta")
    weights, flat = torch.empty(9000, device="meta"), torch.empty(outputs, device="meta")
    heads = [0, 1, 0, 5, 0, 1920, 2, 1, 1, 1, 2000, 4000, 3, 1, 3, 1, -1, -1]
    numbers = heads, [1.0, 1.0, 5.0]
    for factors in (None, pooled):
        kind = "without factors" if factors is None else "with factors"
        inputs = pooled, factors
        yield f"forward {kind}", partial(forward_into, *inputs, weights, *numbers, flat)
        yield f"jvp {kind}", partial(jvp_into, *inputs, weights, pooled, *numbers, flat)
        yield f"vjp {kind}", partial(vjp_into, *inputs, weights, flat, *numbers, pooled)
        one, none = (*inputs, flat), (None, None, None)
        for name, other in (("one pass", none), ("two passes", one)):
            call = partial(weight_gradients_into, *one, *other, heads, weights)
            yield f"weights {kind}, {name}", call
