"""LN(residual + dropout(x + bias)), its backward and its tangent; docs/math/layernorm.md."""

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
from .philox import dropout_numbers, load_stream
from .row_checks import (
    check_epsilon,
    check_floats,
    check_row_dropout,
    check_rows,
    check_statistics,
)
from .rows import (
    column_sums,
    load_float,
    row_factors,
    row_tile,
    store_sum,
    tile_rows,
    tiles_per_program,
)


@triton.jit
def normalize(b_s, m, width, eps):
    """(mean, rstd, standardised rows) of rows that are 0 where ``m`` is False."""
    mean = tl.sum(b_s, axis=1, keep_dims=True) / width
    b_centred = tl.where(m, b_s - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(b_centred * b_centred, axis=1, keep_dims=True) / width + eps)
    return mean, rstd, b_centred * rstd


@triton.jit
def standardize(b_s, p_mean, p_rstd, o_row, m, num_rows):
    """(standardised rows, rstd) from the rows' statistics."""
    mean = load_float(p_mean, o_row, o_row < num_rows)
    rstd = load_float(p_rstd, o_row, o_row < num_rows)
    return tl.where(m, (b_s - mean) * rstd, 0.0), rstd


@triton.jit
def project(b_g, b_z, rstd, width):
    """rstd (g - mean(g) - z mean(g z)): LayerNorm's derivative, its own adjoint."""
    mean = tl.sum(b_g, axis=1, keep_dims=True) / width
    product = tl.sum(b_g * b_z, axis=1, keep_dims=True) / width
    return rstd * (b_g - mean - b_z * product)


@triton.jit
def _residual_tile(
    x,
    p_bias,
    residual,
    p_offsets,
    dropout,
    i_tile,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    """A tile's rows, features, mask, dropout's factors M and residual + M (x + bias).

    x and residual are (pointer, stride); dropout is (stream, threshold, scale).
    """
    o_row, o, m = tile_rows(i_tile, num_rows, width, ROWS, BLOCK)
    b_factor = row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    b_x = load_float(x[0], o_row * x[1] + o, m) + load_float(p_bias, o, o < width)
    b_s = load_float(residual[0], o_row * residual[1] + o, m) + b_factor * b_x
    return o_row, o, m, b_factor, b_s


@triton.jit(do_not_specialize=["num_rows", "site", "threshold"])
def _forward_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    p_weight,  # [width]
    p_shift,  # [width]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_out,  # [num_rows, width]
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    x_stride,
    residual_stride,
    num_rows,
    width,
    eps,
    site,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    place = (tl.program_id(0).to(tl.int64), num_rows, width)
    o_row, o, m, _, b_s = _residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
    mean, rstd, b_z = normalize(b_s, m, width, eps)
    b_out = b_z * load_float(p_weight, o, o < width) + load_float(p_shift, o, o < width)
    tl.store(p_out + o_row * width + o, b_out, mask=m)
    tl.store(p_mean + o_row, mean, mask=o_row < num_rows)
    tl.store(p_rstd + o_row, rstd, mask=o_row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "site", "threshold"])
def _backward_kernel(
    p_grad,  # [num_rows, width], rows grad_stride apart
    p_x,  # [num_rows, width], rows x_stride apart
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    p_weight,  # [width]
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_dx,  # [num_rows, width]
    p_dresidual,  # [num_rows, width]
    p_partial,  # float32 [num_programs, 3, width]: each program's dweight, dshift, dbias
    grad_stride,
    x_stride,
    residual_stride,
    num_rows,
    num_tiles,  # of each program
    width,
    site,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
    SUMS: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    b_dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dshift = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for i_tile in range(i_program * num_tiles, (i_program + 1) * num_tiles):
        place = (i_tile, num_rows, width)
        o_row, o, m, b_factor, b_s = _residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
        b_z, rstd = standardize(b_s, p_mean, p_rstd, o_row, m, num_rows)
        b_grad = load_float(p_grad, o_row * grad_stride + o, m)
        b_ds = project(b_grad * load_float(p_weight, o, o < width), b_z, rstd, width)
        b_dx = b_factor * b_ds
        tl.store(p_dresidual + o_row * width + o, b_ds, mask=m)
        tl.store(p_dx + o_row * width + o, b_dx, mask=m)
        if SUMS:
            b_dweight += b_grad * b_z
            b_dshift += b_grad
            b_dbias += tl.where(m, b_dx, 0.0)
    if SUMS:
        p_sums = p_partial + i_program * 3 * width
        store_sum(p_sums, b_dweight, width)
        store_sum(p_sums + width, b_dshift, width)
        store_sum(p_sums + 2 * width, b_dbias, width)


@triton.jit(do_not_specialize=["num_rows", "site", "threshold"])
def _jvp_kernel(
    p_tx,  # [num_rows, width], rows tx_stride apart
    p_tresidual,  # [num_rows, width], rows tresidual_stride apart
    p_x,  # [num_rows, width], rows x_stride apart
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    p_weight,  # [width]
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_out,  # [num_rows, width]
    tx_stride,
    tresidual_stride,
    x_stride,
    residual_stride,
    num_rows,
    width,
    site,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    place = (tl.program_id(0).to(tl.int64), num_rows, width)
    o_row, o, m, b_factor, b_s = _residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
    b_z, rstd = standardize(b_s, p_mean, p_rstd, o_row, m, num_rows)
    b_ts = b_factor * load_float(p_tx, o_row * tx_stride + o, m)
    b_ts += load_float(p_tresidual, o_row * tresidual_stride + o, m)
    b_out = load_float(p_weight, o, o < width) * project(b_ts, b_z, rstd, width)
    tl.store(p_out + o_row * width + o, b_out, mask=m)


def forward(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, p: float,
    rng: Tensor, site: int, offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(out of the residual's dtype, mean, rstd) for x and residual [num_rows, width]."""
    op = "dropout_add_layernorm_forward"
    num_rows, width = _check(op, x, bias, residual, weight, p, rng, site, offsets)
    check_floats(op, x.device, shift=(shift, (width,)))
    check_epsilon(op, eps)
    x, residual = dense_rows(x), dense_rows(residual)
    out = torch.empty(residual.shape, dtype=residual.dtype, device=x.device)
    mean, rstd = (torch.empty(num_rows, dtype=torch.float32, device=x.device) for _ in range(2))
    tile = row_tile("layernorm forward", width)
    launch(
        _forward_kernel, (triton.cdiv(num_rows, tile["ROWS"]),), x, bias.contiguous(), residual,
        weight.contiguous(), shift.contiguous(), offsets.contiguous(), rng.contiguous(), out, mean,
        rstd, x.stride(0), residual.stride(0), num_rows, width, eps, site, *dropout_numbers(p),
        DROPS=p > 0, **tile,
    )  # fmt: skip
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, mean: Tensor,
    rstd: Tensor, p: float, rng: Tensor, site: int, offsets: Tensor, need_weight_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dresidual, dbias, dweight, dshift); the last three empty where they are not needed."""
    op = "dropout_add_layernorm_backward"
    num_rows, width = _check(op, x, bias, residual, weight, p, rng, site, offsets)
    check_floats(op, x.device, grad=(grad, (num_rows, width)))
    check_statistics(op, x.device, num_rows, mean=mean, rstd=rstd)
    grad, x, residual = dense_rows(grad), dense_rows(x), dense_rows(residual)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dresidual = torch.empty(residual.shape, dtype=residual.dtype, device=x.device)
    tile = row_tile("layernorm backward", width)
    num_tiles = tiles_per_program(num_rows, tile["ROWS"]) if need_weight_grads else 1
    num_programs = triton.cdiv(num_rows, num_tiles * tile["ROWS"])
    partial = mean.new_empty(num_programs if need_weight_grads else 0, 3, width)
    launch(
        _backward_kernel, (num_programs,), grad, x, bias.contiguous(), residual,
        weight.contiguous(), mean.contiguous(), rstd.contiguous(), offsets.contiguous(),
        rng.contiguous(), dx, dresidual, partial, grad.stride(0), x.stride(0), residual.stride(0),
        num_rows, num_tiles, width, site, *dropout_numbers(p), DROPS=p > 0, SUMS=need_weight_grads,
        **tile,
    )  # fmt: skip
    if not need_weight_grads:
        return dx, dresidual, bias.new_empty(0), weight.new_empty(0), weight.new_empty(0)
    dweight, dshift, dbias = column_sums(partial, weight, weight, bias)
    return dx, dresidual, dbias, dweight, dshift


def jvp(
    x_tangent: Tensor, residual_tangent: Tensor, x: Tensor, bias: Tensor, residual: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int, offsets: Tensor,
) -> Tensor:  # fmt: skip
    """The tangent of out along those of x and residual, of the residual's dtype."""
    op = "dropout_add_layernorm_jvp"
    num_rows, width = _check(op, x, bias, residual, weight, p, rng, site, offsets)
    shape = (num_rows, width)
    tangents = {"x_tangent": (x_tangent, shape), "residual_tangent": (residual_tangent, shape)}
    check_floats(op, x.device, **tangents)
    check_statistics(op, x.device, num_rows, mean=mean, rstd=rstd)
    rows = [dense_rows(t) for t in (x_tangent, residual_tangent, x, residual)]
    tx, tresidual, x, residual = rows
    out = torch.empty(shape, dtype=residual.dtype, device=x.device)
    tile = row_tile("layernorm jvp", width)
    launch(
        _jvp_kernel, (triton.cdiv(num_rows, tile["ROWS"]),), tx, tresidual, x, bias.contiguous(),
        residual, weight.contiguous(), mean.contiguous(), rstd.contiguous(), offsets.contiguous(),
        rng.contiguous(), out, *(t.stride(0) for t in rows), num_rows, width, site,
        *dropout_numbers(p), DROPS=p > 0, **tile,
    )  # fmt: skip
    return out


def _check(
    op: str, x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, p: float, rng: Tensor,
    site: int, offsets: Tensor,
) -> tuple[int, int]:  # fmt: skip
    """(rows, width) after the checks that all three have in common."""
    num_rows, width = check_rows(op, "x", x)
    check_floats(
        op, x.device, bias=(bias, (width,)), residual=(residual, (num_rows, width)),
        weight=(weight, (width,)),
    )  # fmt: skip
    check_row_dropout(op, p, rng, site, offsets, num_rows, x.device)
    return num_rows, width


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    dtypes = torch.float32, torch.bfloat16
    for width, dtype, p in itertools.product((384, 768, 1024), dtypes, (0.0, 0.1)):
        x = torch.empty(8, width, dtype=dtype, device="meta")
        residual, vector = x.float(), x.new_empty(width, dtype=torch.float32)
        offsets, rng = (x.new_empty(n, dtype=torch.int64) for n in (8, 2))
        name, dropout = f"{width} {str(dtype)[6:]} p={p}", (p, rng, 5, offsets)
        row, statistics = (x, vector, residual, vector), (residual[:, 0], residual[:, 0], *dropout)
        yield f"forward {name}", partial(forward, *row, vector, 1e-12, *dropout)
        yield f"backward {name}", partial(backward, residual, *row, *statistics, True)
        yield f"inputs {name}", partial(backward, residual, *row, *statistics, False)
        yield f"jvp {name}", partial(jvp, x, residual, *row, *statistics)
