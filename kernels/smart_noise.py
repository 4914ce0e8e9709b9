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
from .philox import load_stream, row_normals
from .row_checks import check_indices

# One Philox block a thread at four warps: its float64 logarithm, sine and cosine take most of the
# registers that a thread has.
COLUMNS, NUM_WARPS = 512, 4


@triton.jit(do_not_specialize=["site"])
def _noise_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_out,  # float32 [num_rows, width]
    width,
    site,
    COLUMNS: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_column = tl.program_id(1) * COLUMNS
    i_first = tl.load(p_offsets + i_row) + i_column + tl.zeros((1,), tl.int64)
    stream = load_stream(p_rng, site)
    if tl.max(i_first % 4, axis=0) == 0:
        b_out = row_normals(i_first, COLUMNS, stream, True)
    else:
        b_out = row_normals(i_first, COLUMNS, stream, False)
    o = i_column + tl.arange(0, COLUMNS)[None, :]
    tl.store(p_out + i_row * width + o, b_out, mask=o < width)


def smart_noise(offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    """Draws of the elements ``offsets[n] + j``, float32 [num_rows, width]."""
    op = "smart_noise"
    check_dropout(op, 0.0, rng, site, offsets.device)
    check_indices(op, offsets.device, offsets.numel(), offsets=offsets)
    if width < 4 or width % 4:
        raise ValueError(f"{op}: width must be a positive multiple of 4, got {width}")
    out = torch.empty(offsets.shape[0], width, dtype=torch.float32, device=offsets.device)
    grid = (offsets.shape[0], triton.cdiv(width, COLUMNS))
    arguments = offsets.contiguous(), rng.contiguous(), out, width, site
    launch(_noise_kernel, grid, *arguments, COLUMNS=COLUMNS, num_warps=NUM_WARPS)
    return out


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    offsets = torch.empty(8, dtype=torch.int64, device="meta")
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    yield "384 columns", partial(smart_noise, offsets, 384, rng, 5)
