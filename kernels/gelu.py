"""gelu(x + bias) with the exact erf, its backward and its tangent; docs/math/gelu.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import dense_rows
from .launch import launch
from .launch_table import TABLE
from .row_checks import check_floats, check_rows
from .rows import column_sums


@triton.jit
def _normal_cdf(b_t):
    return 0.5 * (1.0 + tl.erf(b_t * 0.7071067811865476))


@triton.jit
def _slope(b_t):
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


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    p_bias,  # [width]
    p_out,  # [num_rows, width]
    x_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_row, o_column, m = _tile(num_rows, width, ROWS, COLUMNS)
    b_t = _biased(p_x, p_bias, x_stride, o_row, o_column, m, width)
    tl.store(p_out + o_row * width + o_column[None, :], b_t * _normal_cdf(b_t), mask=m)


@triton.jit(do_not_specialize=["num_rows"])
def _change_kernel(
    p_change,  # [num_rows, width], the gradient or the tangent, rows change_stride apart
    p_x,  # [num_rows, width], rows x_stride apart
    p_bias,  # [width]
    p_out,  # [num_rows, width]
    p_partial,  # float32 [cdiv(num_rows, ROWS), width], sums of out over each program's rows
    change_stride,
    x_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    o_row, o_column, m = _tile(num_rows, width, ROWS, COLUMNS)
    b_t = _biased(p_x, p_bias, x_stride, o_row, o_column, m, width)
    p_tile = p_change + o_row * change_stride + o_column[None, :]
    b_out = tl.load(p_tile, mask=m, other=0.0).to(tl.float32) * _slope(b_t)
    tl.store(p_out + o_row * width + o_column[None, :], b_out, mask=m)
    if SUMS:
        p_sums = p_partial + tl.program_id(0).to(tl.int64) * width + o_column
        tl.store(p_sums, tl.sum(b_out, axis=0), mask=o_column < width)


def forward(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) for x [num_rows, features] and bias [features], of x's dtype."""
    num_rows, width = check_rows("bias_gelu_forward", "x", x)
    check_floats("bias_gelu_forward", x.device, bias=(bias, (width,)))
    x, out = dense_rows(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments, tile = (x, bias.contiguous(), out, x.stride(0)), TABLE["gelu forward"].constants
    launch(_forward_kernel, _grid(num_rows, width, tile), *arguments, num_rows, width, **tile)
    return out


def backward(
    grad: Tensor, x: Tensor, bias: Tensor, need_weight_grads: bool
) -> tuple[Tensor, Tensor]:
    """(dx, dbias) of their arguments' dtypes; dbias is empty where it is not needed."""
    dx, partial = _change("bias_gelu_backward", "grad", grad, x, bias, need_weight_grads)
    if not need_weight_grads:
        return dx, bias.new_empty(0)
    return dx, *column_sums(partial[:, None], bias)


def jvp(x_tangent: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """The tangent of the result along one of x."""
    return _change("bias_gelu_jvp", "x_tangent", x_tangent, x, bias, False)[0]


def _change(
    op: str, name: str, change: Tensor, x: Tensor, bias: Tensor, sums: bool
) -> tuple[Tensor, Tensor]:
    """change * slope(x + bias), and its sums over blocks of rows."""
    num_rows, width = check_rows(op, "x", x)
    check_floats(op, x.device, bias=(bias, (width,)), **{name: (change, (num_rows, width))})
    change, x = dense_rows(change), dense_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = TABLE["gelu change"].constants
    grid = _grid(num_rows, width, tile)
    partial = out.new_empty(grid[0] if sums else 0, width, dtype=torch.float32)
    arguments = (change, x, bias.contiguous(), out, partial, change.stride(0), x.stride(0))
    launch(_change_kernel, grid, *arguments, num_rows, width, SUMS=sums, **tile)
    return out, partial


def _grid(num_rows: int, width: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(num_rows, tile["ROWS"]), triton.cdiv(width, tile["COLUMNS"])


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width, dtype in itertools.product((1536, 3072), (torch.float32, torch.bfloat16)):
        x = torch.empty(8, width, dtype=dtype, device="meta")
        bias, name = x.new_empty(width, dtype=torch.float32), f"{width} {str(dtype)[6:]}"
        yield f"forward {name}", partial(forward, x, bias)
        yield f"backward {name}", partial(backward, x, x, bias, True)
        yield f"inputs {name}", partial(backward, x, x, bias, False)
        yield f"jvp {name}", partial(jvp, x, x, bias)
