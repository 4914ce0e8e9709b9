"""Many tensors for one launch: their addresses on the device, and their elements cut into pieces.

Both tables go to the device once and are kept: an optimiser's tensors stay where they are, and
gradients come back to the same addresses from torch's allocator. A step then copies nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE_FIELDS = 3  # tensor, first element, end
TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Where their elements are; 0 for a tensor without any."""
    return tuple(x.data_ptr() if x.numel() else 0 for x in tensors)


def aligned(places: Iterable[tuple[int, ...]]) -> bool:
    """Whether 16-byte accesses may be used; fresh tensors begin at multiples of 64 or more."""
    return not any(address % 16 for row in places for address in row)


@functools.lru_cache(maxsize=64)
def device_table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on the device; a copy that waits for nothing."""
    pinned = device.type == "cuda"
    table = torch.tensor(values, dtype=dtype, pin_memory=pinned)
    return table.to(device, non_blocking=pinned)


@functools.lru_cache(maxsize=64)
def pieces(sizes: tuple[int, ...], piece_size: int, device: torch.device) -> Tensor:
    """int64 [num_pieces, 3] of tensors with so many elements; depends on the sizes alone."""
    values = []
    for i, size in enumerate(sizes):
        for begin in range(0, size, piece_size):
            values += (i, begin, min(begin + piece_size, size))
    return device_table(tuple(values), torch.int64, device).view(-1, PIECE_FIELDS)


@triton.jit
def load_piece(p_pieces, i_piece):
    """(tensor, first element, end); pieces begin at multiples of their size."""
    p_piece = p_pieces + i_piece * 3
    return tl.load(p_piece), tl.multiple_of(tl.load(p_piece + 1), 16), tl.load(p_piece + 2)


@triton.jit
def tensor_at(p_address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The tensor whose address is there; ALIGNED says that it is a multiple of 16."""
    p_tensor = tl.load(p_address).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        p_tensor = tl.multiple_of(p_tensor, 16)
    return p_tensor


@triton.jit
def load_tile(p_tensor, o, i_end, WHOLE: tl.constexpr):
    """Elements ``o`` as float32, 0 from i_end on; a WHOLE tile needs no mask, which would keep
    accesses from being 16 bytes wide where the end is not a multiple of 4."""
    if WHOLE:
        return tl.load(p_tensor + o).to(tl.float32)
    else:
        return tl.load(p_tensor + o, mask=o < i_end, other=0.0).to(tl.float32)


@triton.jit
def store_tile(p_tensor, o, i_end, b_value, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(p_tensor + o, b_value)
    else:
        tl.store(p_tensor + o, b_value, mask=o < i_end)
