"""LN(residual + dropout(x + bias)), its backward and its tangent; docs/math/layernorm.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    check_dimensions,
    check_epsilon,
    check_floats,
    check_statistics,
    check_tensor,
    check_written_rows,
    check_written_statistics,
    strided,
)
from .layernorm_rows import ResidualSum, normalize, project, residual_tile, standardize
from .philox import load_stream
from .previous_kernel import await_previous
from .rows import RowDropout, load_float, row_tile, store_rows, store_sum
from .write_set import check_write_set, count_change


@triton.jit(do_not_specialize=["num_rows", "num_tangents", "site", "threshold"])
def _forward_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    x_stride,
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    residual_stride,
    p_weight,  # [width]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    site,
    threshold,
    scale,
    p_shift,  # [width]
    p_out,  # [num_rows, width], rows out_stride apart
    out_stride,
    p_low,  # [num_rows, width], the same in another dtype, rows low_stride apart, or None
    low_stride,
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    p_tx,  # the last rows' tangents, rows tx_stride apart, or None
    tx_stride,
    p_tresidual,  # and those of the residual, rows tresidual_stride apart
    tresidual_stride,
    p_tout,  # and of the results, as p_out and p_low
    tout_stride,
    p_tlow,
    tlow_stride,
    num_rows,
    num_tangents,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    await_previous()
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    place = (tl.program_id(0).to(tl.int64) * ROWS, num_rows, width)
    o_row, o, m, b_factor, b_s = residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
    mean, rstd, b_z = normalize(b_s, m, width, eps)
    tl.store(p_mean + o_row, mean, mask=o_row < num_rows)
    tl.store(p_rstd + o_row, rstd, mask=o_row < num_rows)
    b_out = b_z * load_float(p_weight, o, o < width) + load_float(p_shift, o, o < width)
    store_rows(p_out, out_stride, o_row, o, m, b_out)
    store_rows(p_low, low_stride, o_row, o, m, b_out)
    if p_tx is not None:
        i_first = num_rows - num_tangents
        if place[0] + ROWS > i_first:
            o_tangent, m_tangent = o_row - i_first, m & (o_row >= i_first)
            b_ts = b_factor * load_float(p_tx, o_tangent * tx_stride + o, m_tangent)
            b_ts += load_float(p_tresidual, o_tangent * tresidual_stride + o, m_tangent)
            b_out = load_float(p_weight, o, o < width) * project(b_ts, b_z, rstd, width)
            store_rows(p_tout, tout_stride, o_tangent, o, m_tangent, b_out)
            store_rows(p_tlow, tlow_stride, o_tangent, o, m_tangent, b_out)


@triton.jit
def _rows_of_program(p_segments, num_rows, ROWS: tl.constexpr):
    """(first, end) of this program's rows: its segment's, or its tile's if there are no segments.

    A device cannot raise, so bounds are not trusted.
    """
    i_program = tl.program_id(0).to(tl.int64)
    if p_segments is None:
        return i_program * ROWS, tl.minimum((i_program + 1) * ROWS, num_rows)
    else:
        i_first = tl.load(p_segments + i_program).to(tl.int64)
        i_end = tl.load(p_segments + i_program + 1).to(tl.int64)
        return tl.maximum(i_first, 0), tl.minimum(i_end, num_rows)


@triton.jit(do_not_specialize=["num_rows", "site", "threshold"])
def _backward_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    x_stride,
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    residual_stride,
    p_weight,  # [width]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    site,
    threshold,
    scale,
    p_grad,  # [num_rows, width], rows grad_stride apart
    grad_stride,
    p_product,  # [num_rows, width], added to the gradient, rows product_stride apart, or None
    product_stride,
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    p_dx,  # [num_rows, width], rows dx_stride apart
    dx_stride,
    p_dresidual,  # [num_rows, width], rows dresidual_stride apart; may be p_grad
    dresidual_stride,
    p_segments,  # int32 [num_programs + 1], bounds of rows; or None
    p_sums,  # float32 [num_programs, 3, width], sums_stride apart: of bias, weight, shift; or None
    sums_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    await_previous()
    i_begin, i_end = _rows_of_program(p_segments, num_rows, ROWS)
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    b_dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dshift = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for i_first in range(i_begin, i_end, ROWS):
        place = (i_first, i_end, width)
        o_row, o, m, b_factor, b_s = residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
        b_z, rstd = standardize(b_s, p_mean, p_rstd, o_row, m, i_end)
        b_grad = load_float(p_grad, o_row * grad_stride + o, m)
        if p_product is not None:
            b_grad += load_float(p_product, o_row * product_stride + o, m)
        b_ds = project(b_grad * load_float(p_weight, o, o < width), b_z, rstd, width)
        b_dx = b_factor * b_ds
        store_rows(p_dresidual, dresidual_stride, o_row, o, m, b_ds)
        store_rows(p_dx, dx_stride, o_row, o, m, b_dx)
        if p_sums is not None:
            b_dweight += b_grad * b_z
            b_dshift += b_grad
            b_dbias += tl.where(m, b_dx, 0.0)
    if p_sums is not None:
        p_sum = p_sums + tl.program_id(0).to(tl.int64) * sums_stride
        store_sum(p_sum, b_dbias, width)
        store_sum(p_sum + width, b_dweight, width)
        store_sum(p_sum + 2 * width, b_dshift, width)


@triton.jit(do_not_specialize=["num_rows", "site", "threshold"])
def _jvp_kernel(
    p_x,  # [num_rows, width], rows x_stride apart
    x_stride,
    p_bias,  # [width]
    p_residual,  # [num_rows, width], rows residual_stride apart
    residual_stride,
    p_weight,  # [width]
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    site,
    threshold,
    scale,
    p_tx,  # [num_rows, width], rows tx_stride apart
    tx_stride,
    p_tresidual,  # [num_rows, width], rows tresidual_stride apart
    tresidual_stride,
    p_mean,  # float32 [num_rows]
    p_rstd,  # float32 [num_rows]
    p_out,  # [num_rows, width], rows out_stride apart
    out_stride,
    p_low,  # [num_rows, width], the same in another dtype, rows low_stride apart, or None
    low_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    await_previous()
    dropout = (load_stream(p_rng, site), threshold, scale)
    sources = ((p_x, x_stride), p_bias, (p_residual, residual_stride), p_offsets, dropout)
    place = (tl.program_id(0).to(tl.int64) * ROWS, num_rows, width)
    o_row, o, m, b_factor, b_s = residual_tile(*sources, *place, ROWS, BLOCK, DROPS)
    b_z, rstd = standardize(b_s, p_mean, p_rstd, o_row, m, num_rows)
    b_ts = b_factor * load_float(p_tx, o_row * tx_stride + o, m)
    b_ts += load_float(p_tresidual, o_row * tresidual_stride + o, m)
    b_out = load_float(p_weight, o, o < width) * project(b_ts, b_z, rstd, width)
    store_rows(p_out, out_stride, o_row, o, m, b_out)
    store_rows(p_low, low_stride, o_row, o, m, b_out)


def forward_into(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, p: float,
    rng: Tensor, site: int, offsets: Tensor, out: Tensor, low: Tensor | None, mean: Tensor,
    rstd: Tensor, x_tangent: Tensor | None = None, residual_tangent: Tensor | None = None,
    out_tangent: Tensor | None = None, low_tangent: Tensor | None = None,
) -> None:  # fmt: skip
    """out [num_rows, width] of the residual's dtype, low the same in its own, mean and rstd.

    The tangents [num_tangents, width] are of the last rows, all or none but for low_tangent.
    """
    op = "dropout_add_layernorm_forward"
    source = ResidualSum(op, x, bias, residual, weight, RowDropout(p, rng, site, offsets))
    source.check()
    num_rows, width = x.shape
    check_floats(op, x.device, shift=(shift, (width,)))
    check_epsilon(op, eps)
    source.check_results(out, low)
    check_written_statistics(op, x.device, num_rows, mean=mean, rstd=rstd)
    tangents = {"x_tangent": x_tangent, "residual_tangent": residual_tangent}
    tangent_results = {"out_tangent": out_tangent, "low_tangent": low_tangent}
    num_tangents = source.check_tangents(**tangents, **tangent_results)
    written = {"out": out, "low": low, "mean": mean, "rstd": rstd, **tangent_results}
    check_write_set(op, written, {**source.read(), "shift": shift, **tangents})
    tile = row_tile("layernorm forward", width)
    matrices = [
        part for t in (*tangents.values(), *tangent_results.values()) for part in strided(t)
    ]
    source.launch(
        _forward_kernel, triton.cdiv(num_rows, tile["ROWS"]), shift.contiguous(), *strided(out),
        *strided(low), mean, rstd, *matrices, num_rows, num_tangents, width, eps,
        **tile,
    )  # fmt: skip
    count_change(written)


def backward_into(
    grad: Tensor, product: Tensor | None, x: Tensor, bias: Tensor, residual: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int, offsets: Tensor,
    dx: Tensor, dresidual: Tensor, segments: Tensor | None, sums: Tensor | None,
) -> None:  # fmt: skip
    """The gradients where that of the result is grad + product; dresidual may be grad.

    Each is of its argument's dtype. segments int32 [num_segments + 1], ascending bounds from 0 to
    the number of rows, come with sums float32 [num_segments, 3, width]: for bias, weight and shift,
    over the segment's rows.
    """
    op = "dropout_add_layernorm_backward"
    source = ResidualSum(op, x, bias, residual, weight, RowDropout(p, rng, site, offsets))
    source.check()
    (num_rows, width), device = x.shape, x.device
    gradients = {"grad": grad} if product is None else {"grad": grad, "product": product}
    check_floats(op, device, **{name: (g, x.shape) for name, g in gradients.items()})
    check_statistics(op, device, num_rows, mean=mean, rstd=rstd)
    check_written_rows(op, "dx", dx, x.dtype, x.shape, device)
    check_written_rows(op, "dresidual", dresidual, residual.dtype, x.shape, device)
    _check_sums(op, segments, sums, width, device)
    written = {"dx": dx, "dresidual": dresidual, "sums": sums}
    read = {**gradients, **source.read(), "mean": mean, "rstd": rstd, "segments": segments}
    check_write_set(op, written, read, [("dresidual", "grad")])
    tile = row_tile("layernorm backward", width)
    num_programs, bounds = triton.cdiv(num_rows, tile["ROWS"]), None
    if sums is not None:
        num_programs, bounds = len(sums), segments.contiguous()
    source.launch(
        _backward_kernel, num_programs, *strided(grad), *strided(product), mean.contiguous(),
        rstd.contiguous(), *strided(dx), *strided(dresidual), bounds, sums,
        0 if sums is None else sums.stride(0), num_rows, width, **tile,
    )  # fmt: skip
    count_change(written)


def _check_sums(
    op: str, segments: Tensor | None, sums: Tensor | None, width: int, device: torch.device
) -> None:
    """All but the values of segments."""
    if (segments is None) != (sums is None):
        raise ValueError(f"{op}: sums are those of segments; pass both or none")
    if sums is None:
        return
    check_dimensions(op, "segments", segments, 1)
    num_segments = max(len(segments) - 1, 0)
    check_tensor(op, "segments", segments, torch.int32, (num_segments + 1,), device)
    check_tensor(op, "sums", sums, torch.float32, (num_segments, 3, width), device)
    apart, *dense = sums.stride()
    is_dense = dense[0] == width and (dense[1] == 1 or width == 1)
    if not is_dense or (apart < 3 * width and num_segments > 1):
        raise ValueError(
            f"{op}: sums is written and needs a dense [3, {width}] of each segment, apart from the "
            f"others, got strides {sums.stride()}; pass a contiguous tensor or columns of one"
        )


def jvp_into(
    x_tangent: Tensor, residual_tangent: Tensor, x: Tensor, bias: Tensor, residual: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int, offsets: Tensor,
    out: Tensor, low: Tensor | None,
) -> None:  # fmt: skip
    """The result's tangent along those of x and residual: out of the residual's dtype, and low."""
    op = "dropout_add_layernorm_jvp"
    source = ResidualSum(op, x, bias, residual, weight, RowDropout(p, rng, site, offsets))
    source.check()
    num_rows, width = x.shape
    tangents = {"x_tangent": x_tangent, "residual_tangent": residual_tangent}
    check_floats(op, x.device, **{name: (t, x.shape) for name, t in tangents.items()})
    check_statistics(op, x.device, num_rows, mean=mean, rstd=rstd)
    source.check_results(out, low)
    written, read = {"out": out, "low": low}, {**source.read(), "mean": mean, "rstd": rstd}
    check_write_set(op, written, {**tangents, **read})
    tile = row_tile("layernorm jvp", width)
    source.launch(
        _jvp_kernel, triton.cdiv(num_rows, tile["ROWS"]), *strided(x_tangent),
        *strided(residual_tangent), mean.contiguous(), rstd.contiguous(), *strided(out),
        *strided(low), num_rows, width, **tile,
    )  # fmt: skip
    count_change(written)


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring. In bfloat16 as the written-out step calls them."""
    dtypes = torch.float32, torch.bfloat16
    for width, dtype, p in itertools.product((384, 768, 1024), dtypes, (0.0, 0.1)):
        x = torch.empty(8, width, dtype=dtype, device="meta")
        residual, vector = x.float(), x.new_empty(width, dtype=torch.float32)
        offsets, rng = (x.new_empty(n, dtype=torch.int64) for n in (8, 2))
        name, dropout = f"{width} {str(dtype)[6:]} p={p}", (p, rng, 5, offsets)
        low, product = (None, None) if dtype is torch.float32 else (x, x)
        row, statistics = (x, vector, residual, vector), (residual.new_empty(8),) * 2
        saved, results = (*row, *statistics, *dropout), (x, residual)
        forward = partial(forward_into, *row, vector, 1e-12, *dropout, residual)
        yield f"forward {name}", partial(forward, low, *statistics)
        tangents = x[:4], residual[:4], residual[:4], None if low is None else low[:4]
        yield f"forward and tangent {name}", partial(forward, low, *statistics, *tangents)
        sums = residual.new_empty(4, 3, width)
        segments = sums.new_empty(5, dtype=torch.int32)
        for kind, wanted in (("backward", (segments, sums)), ("inputs", (None, None))):
            gradients = residual, product, *saved, *results
            yield f"{kind} {name}", partial(backward_into, *gradients, *wanted)
        yield f"jvp {name}", partial(jvp_into, x, residual, *saved, residual, low)
