"""The norm of all gradients and their clip factor: docs/math/adamw_ema.md.

The same bits every time: tiles of fixed size, added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adamw_checks import check_gradients
from .checks import check_written
from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous
from .tensor_table import (
    TRITON_TYPES,
    addresses,
    aligned,
    device_table,
    load_piece,
    load_tile,
    pieces,
    tensor_at,
)
from .write_set import check_write_set, count_change

# Tiles are summed in float32, pieces in float64. A hundred million gradients make 6,700 pieces.
NORM_PIECE = 16384


@triton.jit
def _square_sums_kernel(
    p_addresses,  # int64 [num_tensors]
    p_pieces,  # int64 [num_pieces, 3], of tensors of one dtype
    p_sums,  # float64 [num_pieces]
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_piece = tl.program_id(0).to(tl.int64)
    i_tensor, i_begin, i_end = load_piece(p_pieces, i_piece)
    p_grad = tensor_at(p_addresses + i_tensor, GRAD, ALIGNED)
    total = tl.zeros((), tl.float64)
    for i_first in range(i_begin, i_end, BLOCK):
        o = i_first + tl.arange(0, BLOCK)
        if i_first + BLOCK <= i_end:
            b_grad = load_tile(p_grad, o, i_end, True)
        else:
            b_grad = load_tile(p_grad, o, i_end, False)
        total += tl.sum(b_grad * b_grad, axis=0).to(tl.float64)
    tl.store(p_sums + i_piece, total)


@triton.jit(do_not_specialize=["num_pieces"])
def _root_kernel(
    p_sums,  # float64 [num_pieces]
    p_results,  # float32 [3]: norm, clip factor, whether the norm is finite
    num_pieces,
    max_norm,  # 0 does not clip
    BLOCK: tl.constexpr,
):
    await_previous()
    b_total = tl.zeros((BLOCK,), tl.float64)
    for i_first in range(0, num_pieces, BLOCK):
        o = i_first + tl.arange(0, BLOCK)
        b_total += tl.load(p_sums + o, mask=o < num_pieces, other=0.0)
    norm = tl.sqrt(tl.sum(b_total, axis=0)).to(tl.float32)
    factor = tl.full((), 1.0, tl.float64)
    if max_norm > 0:
        factor = tl.minimum(max_norm / (norm.to(tl.float64) + 1e-6), factor)
    is_finite = norm - norm == 0
    tl.store(p_results, norm)
    tl.store(p_results + 1, tl.where(is_finite, factor.to(tl.float32), norm - norm))
    tl.store(p_results + 2, is_finite.to(tl.float32))


def gradient_norm_into(grads: Sequence[Tensor], max_norm: float, out: Tensor) -> None:
    """The 2-norm of all gradients together, the clip factor, and 1 for a norm that is finite,
    else 0. out: float32 [3].
    """
    op = "gradient_norm"
    check_gradients(op, grads)
    if not max_norm >= 0:
        raise ValueError(f"{op}: max_norm must be >= 0, got {max_norm}")
    device = grads[0].device if grads else out.device
    check_written(op, "out", out, torch.float32, (3,), device)
    check_write_set(op, {"out": out}, {"grads": grads})
    dense = [g.contiguous() for g in grads]
    places, tile = addresses(dense), TABLE["gradient_norm"].constants
    table = device_table(places, torch.int64, device)
    parts = {dtype: pieces(sizes, NORM_PIECE, device) for dtype, sizes in _sizes(dense).items()}
    counts = [len(part) for part in parts.values()]
    sums = torch.empty(sum(counts), dtype=torch.float64, device=device)
    for (dtype, part), sums_of_it in zip(parts.items(), sums.split(counts), strict=True):
        constants = {"GRAD": TRITON_TYPES[dtype], "ALIGNED": aligned([places])}
        launch(_square_sums_kernel, sums_of_it.shape, table, part, sums_of_it, **constants, **tile)
    launch(_root_kernel, (1,), sums, out, len(sums), float(max_norm), **tile)
    count_change({"out": out})


def _sizes(grads: Sequence[Tensor]) -> dict[torch.dtype, tuple[int, ...]]:
    """Of the gradients of each dtype, 0 for all others."""
    dtypes = dict.fromkeys(g.dtype for g in grads)
    return {dtype: tuple(g.numel() if g.dtype == dtype else 0 for g in grads) for dtype in dtypes}


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for dtype in (torch.float32, torch.bfloat16):
        grads = [torch.empty(384, device="meta", dtype=dtype)]
        out = torch.empty(3, device="meta")
        yield str(dtype)[6:], partial(gradient_norm_into, grads, 1.0, out)
