"""Column sums: of several layers, each row times a weight; and of other kernels' partial sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_floating, check_statistics, check_written_rows
from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous
from .rows import load_float
from .write_set import check_write_set, count_change


@triton.jit
def _store_total(p_sum, is_its_program, o_column, b_total, m_column):
    if p_sum is not None:  # noqa: SIM102 - this is known to the compiler, the other is not
        if is_its_program:
            tl.store(p_sum + o_column, b_total, mask=m_column)


@triton.jit(do_not_specialize=["num_weights", "num_rows"])
def _column_sums_kernel(
    p_x,  # [num_layers, num_rows, width], layers layer_stride and rows row_stride apart
    layer_stride,
    row_stride,
    p_weights,  # float32 [num_weights], of the first rows, or None; 1 of the others
    num_weights,
    p_out,  # layer i's sums [width] at i out_stride; without a stride the first layer's
    out_stride,
    p_second,  # [width], the second layer's without a stride; those that are None are not wanted
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    await_previous()
    i_layer = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < width
    b_total = tl.zeros((COLUMNS,), tl.float32)
    for i_first in range(0, num_rows, ROWS):
        o_row = i_first + tl.arange(0, ROWS)
        o = i_layer * layer_stride + o_row.to(tl.int64)[:, None] * row_stride + o_column[None, :]
        b_x = load_float(p_x, o, (o_row < num_rows)[:, None] & m_column[None, :])
        if p_weights is not None:
            b_x *= tl.load(p_weights + o_row, mask=o_row < num_weights, other=1.0)[:, None]
        b_total += tl.sum(b_x, axis=0)
    if out_stride is not None:
        tl.store(p_out + i_layer * out_stride + o_column, b_total, mask=m_column)
    else:
        _store_total(p_out, i_layer == 0, o_column, b_total, m_column)
        _store_total(p_second, i_layer == 1, o_column, b_total, m_column)


def _launch(x: Tensor, *others) -> None:
    """others: the kernel's arguments from p_weights to p_second."""
    num_layers, num_rows, width = x.shape
    tile = TABLE["column sums"].constants
    grid = (num_layers, triton.cdiv(width, tile["COLUMNS"]))
    strides = x.stride(0), x.stride(1)
    launch(_column_sums_kernel, grid, x, *strides, *others, num_rows, width, **tile)


def column_sums_into(x: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """out[l, j] = sum over r of weights[r] x[l, r, j], in float32; rows without a weight have 1.

    Args:
        x: [num_layers, num_rows, width]. weights: float32, of at most num_rows first rows, or None.
        out: float32 [num_layers, width].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    op = "column_sums"
    check_floating(op, "x", x, 3)
    num_layers, num_rows, width = x.shape
    if weights is not None:
        check_statistics(op, x.device, min(len(weights), num_rows), weights=weights)
        weights = weights.contiguous()
    check_written_rows(op, "out", out, torch.float32, (num_layers, width), x.device)
    check_write_set(op, {"out": out}, {"x": x, "weights": weights})
    x = x if x.stride(2) == 1 or width == 1 else x.contiguous()
    _launch(x, weights, 0 if weights is None else len(weights), out, out.stride(0), None)
    count_change({"out": out})


def partial_sums_into(partial: Tensor, *sums: Tensor | None) -> None:
    """Sums over the first dimension of float32 [num_partial, num_sums <= 2, width], in its order.

    Each goes into a tensor [width] of any dtype, or nowhere.
    """
    first, second = (*sums, None)[:2]
    _launch(partial.transpose(0, 1), None, 0, first, None, second)


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring; partial sums are of the ops that leave them."""
    for dtype, is_weighted in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        x = torch.empty(6, 32, 384, dtype=dtype, device="meta")
        out, weights = (x.new_empty(n, dtype=torch.float32) for n in ((6, 384), (32,)))
        name = f"{str(dtype)[6:]}{' weighted' if is_weighted else ''}"
        yield name, partial(column_sums_into, x, weights if is_weighted else None, out)
