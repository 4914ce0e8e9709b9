"""Dropout as a function: Philox4x32-10 of (seed, step, site, logical element index).

An element's index e counts positions against the model's maximum length, so its mask does not
depend on packing, padding, batch mates, backend or order of execution:

    hidden states            e = (row * max_length + position) * num_features + feature
    attention probabilities  e = ((row * num_heads + head) * max_length + query) * max_length + key

With the key (seed low, seed high) and the counter (e // 4 low, e // 4 high, site, step), 32 bits
each, the element's random word is output number e % 4. It is kept where
word >= floor(p * 2^32), and then scaled by 1 / (1 - p).

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import TRITON, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define

define(
    "dropout_mask_into(Tensor offsets, float p, Tensor rng, int site, Tensor(a!) out)",
    "draws.dropout_mask_into",
)
define(
    "philox_bits_into(Tensor offsets, Tensor rng, int site, Tensor(a!) out)",
    "draws.philox_bits_into",
)

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox_4x32_10(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold unsigned 32-bit words.

    Args:
        counter: four tensors of one shape.
        key: two tensors that broadcast with them.

    Returns:
        four tensors of words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & MASK32) ^ c1 ^ k0,
            product1 & MASK32,
            ((product0 >> 32) & MASK32) ^ c3 ^ k1,
            product0 & MASK32,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return [c0, c1, c2, c3]


def philox_bits_reference(offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    """Random words of the elements ``offsets[n] + j``, as int32 [N, width]; see ``philox_bits``."""
    element = offsets[:, None] + torch.arange(width, device=offsets.device)
    block = element >> 2
    seed, step = rng[0], rng[1]
    zero = torch.zeros_like(block)
    counter = [block & MASK32, block >> 32, zero + site, zero + step]
    words = torch.stack(philox_4x32_10(counter, [seed & MASK32, (seed >> 32) & MASK32]), dim=-1)
    word = words.gather(-1, (element & 3)[..., None])[..., 0]
    return (word - ((word >> 31) << 32)).to(torch.int32)


def keep_threshold(p: float) -> int:
    """Words below this are dropped: floor(p * 2^32)."""
    return math.floor(p * 2**32)


def dropout_mask_reference(
    offsets: Tensor, width: int, p: float, rng: Tensor, site: int, dtype: torch.dtype
) -> Tensor:
    """See ``dropout_mask``."""
    word = philox_bits_reference(offsets, width, rng, site).to(torch.int64) & MASK32
    scale = torch.tensor(1.0 / (1.0 - p), dtype=torch.float64).to(dtype).to(offsets.device)
    return torch.where(word >= keep_threshold(p), scale, torch.zeros_like(scale))


def _run_mask(
    backend: Backend,
    offsets: Tensor,
    width: int,
    p: float,
    rng: Tensor,
    site: int,
    dtype: torch.dtype,
) -> Tensor:
    out = offsets.new_empty(offsets.shape[0], width, dtype=dtype)
    backend.ops.dropout_mask_into(offsets, p, rng, site, out)
    return out


def _run_bits(backend: Backend, offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    out = offsets.new_empty(offsets.shape[0], width, dtype=torch.int32)
    backend.ops.philox_bits_into(offsets, rng, site, out)
    return out


def _bits_why_not(backend: Backend, offsets: Tensor, *args) -> str | None:
    return backend.device_reason("offsets", offsets)


def _mask_why_not(backend: Backend, offsets: Tensor, *args) -> str | None:
    reason = backend.device_reason("offsets", offsets)
    if reason is None and backend is TRITON and torch.float64 in args:
        return "the factors are float64, which the reference makes"
    return reason


_mask = fused_op("dropout_mask", _run_mask, _mask_why_not, dropout_mask_reference)
_bits = fused_op("philox_bits", _run_bits, _bits_why_not, philox_bits_reference)


@torch.no_grad()
def dropout_mask(
    offsets: Tensor,
    width: int,
    p: float,
    rng: Tensor,
    site: int,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "auto",
) -> Tensor:
    """The factors dropout multiplies by: 0 or 1 / (1 - p).

    Args:
        offsets: int64 [N], the logical index of each row's first element, >= 0.
        width: elements per row; element (n, j) has index ``offsets[n] + j``.
        p: probability of a zero, in [0, 1).
        rng: int64 [2], (seed, step); step in [0, 2^32).
        site: which dropout of the model this is, in [0, 2^32).
        dtype: floating dtype of the result.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; they are bit-identical.

    Returns:
        [N, width] of ``dtype``.

    Raises:
        ValueError: p outside [0, 1).
        BackendError: the named backend cannot run these inputs.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_mask: p must be in [0, 1), got {p}")
    return _mask(offsets, width, p, rng, site, dtype, backend=backend)


@torch.no_grad()
def philox_bits(
    offsets: Tensor, width: int, rng: Tensor, site: int, *, backend: str = "auto"
) -> Tensor:
    """The raw 32-bit words behind ``dropout_mask``, as int32 [N, width]."""
    return _bits(offsets, width, rng, site, backend=backend)


@torch.no_grad()
def philox_normal(
    offsets: Tensor, width: int, rng: Tensor, site: int, *, backend: str = "auto"
) -> Tensor:
    """Standard normal draws as a function, float32 [N, width], by Box-Muller on word pairs.

    Words 0 and 1 of a block give its first two draws, words 2 and 3 the others; ``offsets`` must be
    multiples of 4 for blocks to be whole, as multiples of the width are.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"philox_normal: width must be a multiple of 4, got {width}")
    word = philox_bits(offsets, width, rng, site, backend=backend).to(torch.float64)
    word = torch.where(word < 0, word + 2.0**32, word).reshape(-1, width // 2, 2)
    radius = torch.sqrt(-2.0 * torch.log((word[..., 0] + 1.0) * 2.0**-32))
    angle = word[..., 1] * (2.0 * math.pi * 2.0**-32)
    pair = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pair.reshape(-1, width).to(torch.float32)


OPS = (_mask, _bits)
