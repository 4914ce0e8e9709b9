"""Draws of rows of elements by their logical index: random words, dropout's factors, normals.

Mathematics and contract: ``ops.dropout``, and docs/math/smart_ascend.md, "Noise".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    check_dimensions,
    check_dropout,
    check_floating,
    check_indices,
    check_written_rows,
    strided,
)
from .launch import launch
from .launch_table import TABLE
from .philox import dropout_factors, dropout_numbers, load_stream, row_normals, row_words
from .previous_kernel import await_previous
from .write_set import check_write_set, count_change


@triton.jit
def _draws(
    i_first, COLUMNS: tl.constexpr, stream, threshold, scale, KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Of the elements i_first[i] + j, [rows, COLUMNS]; ALIGNED as in ``row_words``."""
    if KIND == "normal":
        return row_normals(i_first, COLUMNS, stream, ALIGNED)
    elif KIND == "factor":
        return dropout_factors(row_words(i_first, COLUMNS, stream, ALIGNED), threshold, scale)
    else:
        return row_words(i_first, COLUMNS, stream, ALIGNED).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["num_rows", "site", "threshold"])
def _draw_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_out,  # [num_rows, width], rows out_stride apart
    out_stride,
    num_rows,
    width,
    site,
    threshold,
    scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    await_previous()
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_column = tl.program_id(1) * COLUMNS
    i_first = tl.load(p_offsets + o_row, mask=o_row < num_rows, other=0) + i_column
    stream = load_stream(p_rng, site)
    if tl.max(i_first & 3, axis=0) == 0:
        b_out = _draws(i_first, COLUMNS, stream, threshold, scale, KIND, True)
    else:
        b_out = _draws(i_first, COLUMNS, stream, threshold, scale, KIND, False)
    o = i_column + tl.arange(0, COLUMNS)[None, :]
    m = (o_row < num_rows)[:, None] & (o < width)
    tl.store(p_out + o_row[:, None] * out_stride + o, b_out, mask=m)


def philox_bits_into(offsets: Tensor, rng: Tensor, site: int, out: Tensor) -> None:
    """Words of the elements ``offsets[n] + j``, int32 [num_rows, width]."""
    op = "philox_bits"
    _check(op, offsets, 0.0, rng, site)
    check_dimensions(op, "out", out, 2)
    _draw_into(op, "word", offsets, rng, site, (0, 1.0), out, torch.int32)


def dropout_mask_into(offsets: Tensor, p: float, rng: Tensor, site: int, out: Tensor) -> None:
    """0 or 1 / (1 - p), [num_rows, width] of out's dtype: float32, bfloat16 or float16."""
    op = "dropout_mask"
    _check(op, offsets, p, rng, site)
    check_floating(op, "out", out, 2)
    threshold, scale = dropout_numbers(p)
    scale = torch.tensor(scale, dtype=torch.float64).to(out.dtype).item()  # rounded once
    _draw_into(op, "factor", offsets, rng, site, (threshold, scale), out, out.dtype)


def smart_noise_into(offsets: Tensor, rng: Tensor, site: int, out: Tensor) -> None:
    """Standard normal draws of the elements ``offsets[n] + j``, float32 [num_rows, width]."""
    op = "smart_noise"
    _check(op, offsets, 0.0, rng, site)
    check_dimensions(op, "out", out, 2)
    if out.shape[1] < 4 or out.shape[1] % 4:
        raise ValueError(f"{op}: width must be a positive multiple of 4, got {out.shape[1]}")
    _draw_into(op, "normal", offsets, rng, site, (0, 1.0), out, torch.float32)


def _check(op: str, offsets: Tensor, p: float, rng: Tensor, site: int) -> None:
    check_indices(op, offsets.device, offsets.numel(), offsets=offsets)
    check_dropout(op, p, rng, site, offsets.device)


def _draw_into(
    op: str, kind: str, offsets: Tensor, rng: Tensor, site: int, numbers: tuple[int, float],
    out: Tensor, dtype: torch.dtype,
) -> None:  # fmt: skip
    """numbers: dropout's threshold and scale."""
    num_rows, width = offsets.shape[0], out.shape[1]
    if width < 1:
        raise ValueError(f"{op}: width must be at least 1, got {width}")
    check_written_rows(op, "out", out, dtype, (num_rows, width), offsets.device)
    check_write_set(op, {"out": out}, {"offsets": offsets, "rng": rng})
    tile = _tile("smart_noise" if kind == "normal" else "dropout_mask", width)
    grid = triton.cdiv(num_rows, tile["ROWS"]), triton.cdiv(width, tile["COLUMNS"])
    tensors = offsets.contiguous(), rng.contiguous(), *strided(out)
    launch(_draw_kernel, grid, *tensors, num_rows, width, site, *numbers, KIND=kind, **tile)
    count_change({"out": out})


def _tile(name: str, width: int) -> dict[str, int]:
    """ROWS, COLUMNS and num_warps; narrow rows are as many as make the same tile."""
    tile = TABLE[name].constants
    columns = min(tile["COLUMNS"], max(triton.next_power_of_2(width), 4))
    return tile | {"ROWS": tile["ROWS"] * tile["COLUMNS"] // columns, "COLUMNS": columns}


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    offsets = torch.empty(8, dtype=torch.int64, device="meta")
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    out = {d: torch.empty(8, 384, dtype=d, device="meta") for d in (torch.float32, torch.bfloat16)}
    words = torch.empty(8, 384, dtype=torch.int32, device="meta")
    yield "bits", partial(philox_bits_into, offsets, rng, 5, words)
    yield "noise", partial(smart_noise_into, offsets, rng, 5, out[torch.float32])
    for dtype, mask in out.items():
        yield f"mask {dtype}", partial(dropout_mask_into, offsets, 0.1, rng, 5, mask)
