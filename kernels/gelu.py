"""gelu(x + bias) with the exact erf, its backward and its tangent; docs/math/gelu.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    check_floats,
    check_last_rows,
    check_rows,
    check_written,
    check_written_rows,
    strided,
)
from .column_sums import partial_sums_into
from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous
from .write_set import check_write_set, count_change


@triton.jit
def _normal_cdf(b_t):
    return 0.5 * (1.0 + tl.erf(b_t * 0.7071067811865476))


@triton.jit
def _gelu_grad(b_t):
    """The derivative of gelu: the normal cdf plus t times the normal density."""
    return _normal_cdf(b_t) + b_t * 0.3989422804014327 * tl.exp(-0.5 * b_t * b_t)


@triton.jit
def _tile(num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's rows [ROWS, 1], columns [COLUMNS] and mask [ROWS, COLUMNS]."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return o_row, o_column, (o_row < num_rows) & (o_column < width)[None, :]


@triton.jit
def _biased(p_x, p_bias, x_stride, o_row, o_column, m, width):
    """x + bias, float32 [ROWS, COLUMNS]."""
    b_x = tl.load(p_x + o_row * x_stride + o_column[None, :], mask=m, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_column, mask=o_column < width, other=0.0).to(tl.float32)
    return b_x + b_bias[None, :]


@triton.jit(do_not_specialize=["num_rows", "num_tangents"])
def _forward_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    x_stride,
    p_bias,  # [width]
    p_out,  # [num_rows, width], rows out_stride apart; may be p_x
    out_stride,
    p_tx,  # the last rows' tangents, rows tx_stride apart, or None
    tx_stride,
    p_tout,  # and those of out, rows tout_stride apart; may be p_tx
    tout_stride,
    num_rows,
    num_tangents,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    await_previous()
    o_row, o_column, m = _tile(num_rows, width, ROWS, COLUMNS)
    b_t = _biased(p_x, p_bias, x_stride, o_row, o_column, m, width)
    tl.store(p_out + o_row * out_stride + o_column[None, :], b_t * _normal_cdf(b_t), mask=m)
    if p_tx is not None:
        i_first = num_rows - num_tangents
        if (tl.program_id(0).to(tl.int64) + 1) * ROWS > i_first:
            o_tangent, m_tangent = o_row - i_first, m & (o_row >= i_first)
            p_tile = p_tx + o_tangent * tx_stride + o_column[None, :]
            b_out = tl.load(p_tile, mask=m_tangent, other=0.0).to(tl.float32) * _gelu_grad(b_t)
            tl.store(p_tout + o_tangent * tout_stride + o_column[None, :], b_out, mask=m_tangent)


@triton.jit(do_not_specialize=["num_rows"])
def _jacobian_product_kernel(
    p_vector,  # [num_rows, width], the gradient or the tangent, rows vector_stride apart
    vector_stride,
    p_x,  # [num_rows, width], rows x_stride apart
    x_stride,
    p_bias,  # [width]
    p_out,  # [num_rows, width], rows out_stride apart; may be p_vector or p_x
    out_stride,
    p_partial,  # float32 [cdiv(num_rows, ROWS), width], sums of each program's rows, or None
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The Jacobian is diagonal: a VJP and a JVP are the same product."""
    await_previous()
    o_row, o_column, m = _tile(num_rows, width, ROWS, COLUMNS)
    b_t = _biased(p_x, p_bias, x_stride, o_row, o_column, m, width)
    p_tile = p_vector + o_row * vector_stride + o_column[None, :]
    b_out = tl.load(p_tile, mask=m, other=0.0).to(tl.float32) * _gelu_grad(b_t)
    tl.store(p_out + o_row * out_stride + o_column[None, :], b_out, mask=m)
    if p_partial is not None:
        p_sums = p_partial + tl.program_id(0).to(tl.int64) * width + o_column
        tl.store(p_sums, tl.sum(b_out, axis=0), mask=o_column < width)


def forward_into(
    x: Tensor, bias: Tensor, out: Tensor, x_tangent: Tensor | None = None,
    out_tangent: Tensor | None = None,
) -> None:  # fmt: skip
    """gelu(x + bias) of x [num_rows, features] and bias [features], into out, of x's dtype.

    out may be x, and out_tangent x_tangent.

    Args:
        x_tangent, out_tangent: [num_tangents, features], of the last rows; both or none.
    """
    op, read = "bias_gelu_forward", {"x": x, "bias": bias, "x_tangent": x_tangent}
    num_rows, width = _check(op, x, bias)
    check_written_rows(op, "out", out, x.dtype, (num_rows, width), x.device)
    if (x_tangent is None) != (out_tangent is None):
        raise ValueError(f"{op}: x_tangent and out_tangent go together; pass both or none")
    if x_tangent is not None:
        check_last_rows(op, "x_tangent", x_tangent, x)
        check_written_rows(op, "out_tangent", out_tangent, x.dtype, x_tangent.shape, x.device)
    written = {"out": out, "out_tangent": out_tangent}
    check_write_set(op, written, read, [("out", "x"), ("out_tangent", "x_tangent")])
    tile = TABLE["gelu forward"].constants
    tensors = *strided(x), bias.contiguous(), *strided(out), *strided(x_tangent)
    sizes = num_rows, 0 if x_tangent is None else len(x_tangent), width
    grid = _grid(num_rows, width, tile)
    launch(_forward_kernel, grid, *tensors, *strided(out_tangent), *sizes, **tile)
    count_change(written)


def backward_into(grad: Tensor, x: Tensor, bias: Tensor, dx: Tensor, dbias: Tensor | None) -> None:
    """The gradients of x and of bias, of their dtypes; dx may be grad or x."""
    _jacobian_product_into("bias_gelu_backward", ("grad", grad), x, bias, ("dx", dx), dbias)


def jvp_into(x_tangent: Tensor, x: Tensor, bias: Tensor, out: Tensor) -> None:
    """The tangent of the result along one of x, of x's dtype; out may be x_tangent or x."""
    _jacobian_product_into("bias_gelu_jvp", ("x_tangent", x_tangent), x, bias, ("out", out), None)


def _jacobian_product_into(
    op: str, vector: tuple[str, Tensor], x: Tensor, bias: Tensor, result: tuple[str, Tensor],
    dbias: Tensor | None,
) -> None:  # fmt: skip
    """vector * gelu'(x + bias), and its sum over the rows; vector and result with their names."""
    shape = num_rows, width = _check(op, x, bias)
    check_floats(op, x.device, **{vector[0]: (vector[1], shape)})
    check_written_rows(op, *result, x.dtype, shape, x.device)
    if dbias is not None:
        check_written(op, "dbias", dbias, bias.dtype, (width,), x.device)
    written, read = dict([result, ("dbias", dbias)]), dict([vector, ("x", x), ("bias", bias)])
    check_write_set(op, written, read, [(result[0], vector[0]), (result[0], "x")])
    tile = TABLE["gelu jacobian"].constants
    grid, partial = _grid(num_rows, width, tile), None
    if dbias is not None:
        partial = torch.empty(grid[0], 1, width, dtype=torch.float32, device=x.device)
    tensors = *strided(vector[1]), *strided(x), bias.contiguous(), *strided(result[1]), partial
    launch(_jacobian_product_kernel, grid, *tensors, num_rows, width, **tile)
    if dbias is not None:
        partial_sums_into(partial, dbias)
    count_change(written)


def _check(op: str, x: Tensor, bias: Tensor) -> tuple[int, int]:
    """(rows, features)."""
    num_rows, width = check_rows(op, "x", x)
    check_floats(op, x.device, bias=(bias, (width,)))
    return num_rows, width


def _grid(num_rows: int, width: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(num_rows, tile["ROWS"]), triton.cdiv(width, tile["COLUMNS"])


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width, dtype in itertools.product((1536, 3072), (torch.float32, torch.bfloat16)):
        x = torch.empty(8, width, dtype=dtype, device="meta")
        bias, name = x.new_empty(width, dtype=torch.float32), f"{width} {str(dtype)[6:]}"
        yield f"forward {name}", partial(forward_into, x, bias, x)
        yield f"forward and tangent {name}", partial(forward_into, x, bias, x, x[:4], x[:4])
        yield f"backward {name}", partial(backward_into, x, x, bias, x, bias)
        yield f"inputs {name}", partial(backward_into, x, x, bias, x, None)
        yield f"jvp {name}", partial(jvp_into, x, x, bias, x)
