"""Standard normal draws by logical element index; docs/math/smart_ascend.md, "Noise"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_dropout
from .launch import launch
from .launch_table import TABLE
from .philox import load_stream, row_normals
from .row_checks import check_indices


def _tile(width: int) -> dict[str, int]:
    """ROWS, COLUMNS and num_warps; narrow rows are as many as make the same tile."""
    tile = TABLE["smart_noise"].constants
    columns = min(tile["COLUMNS"], triton.next_power_of_2(width))
    return tile | {"ROWS": tile["ROWS"] * tile["COLUMNS"] // columns, "COLUMNS": columns}


@triton.jit(do_not_specialize=["num_rows", "site"])
def _noise_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_out,  # float32 [num_rows, width]
    num_rows,
    width,
    site,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_column = tl.program_id(1) * COLUMNS
    i_first = tl.load(p_offsets + o_row, mask=o_row < num_rows, other=0) + i_column
    stream = load_stream(p_rng, site)
    if tl.max(i_first % 4, axis=0) == 0:
        b_out = row_normals(i_first, COLUMNS, stream, True)
    else:
        b_out = row_normals(i_first, COLUMNS, stream, False)
    o = i_column + tl.arange(0, COLUMNS)[None, :]
    m = (o_row < num_rows)[:, None] & (o < width)
    tl.store(p_out + o_row[:, None] * width + o, b_out, mask=m)


def smart_noise(offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    """Draws of the elements ``offsets[n] + j``, float32 [num_rows, width]."""
    op = "smart_noise"
    check_dropout(op, 0.0, rng, site, offsets.device)
    check_indices(op, offsets.device, offsets.numel(), offsets=offsets)
    if width < 4 or width % 4:
        raise ValueError(f"{op}: width must be a positive multiple of 4, got {width}")
    out = torch.empty(offsets.shape[0], width, dtype=torch.float32, device=offsets.device)
    tile = _tile(width)
    grid = triton.cdiv(out.shape[0], tile["ROWS"]), triton.cdiv(width, tile["COLUMNS"])
    arguments = offsets.contiguous(), rng.contiguous(), out, out.shape[0], width, site
    launch(_noise_kernel, grid, *arguments, **tile)
    return out


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    offsets = torch.empty(8, dtype=torch.int64, device="meta")
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    yield "384 columns", partial(smart_noise, offsets, 384, rng, 5)
