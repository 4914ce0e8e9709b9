"""The random words of rows of elements, and the factors dropout makes of them.

Mathematics and contract: ``ops.dropout``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_dropout, check_tensor
from .launch import launch
from .launch_table import TABLE
from .philox import dropout_factors, dropout_numbers, element_words, load_stream

_varying = ["site", "threshold", "width", "num_elements"]


@triton.jit
def _words(p_offsets, p_rng, site, width, o_element, m_element):
    """Words of the elements at places ``o_element`` of [num_rows, width]."""
    i_first = tl.load(p_offsets + o_element // width, mask=m_element, other=0)
    return element_words(i_first + o_element % width, load_stream(p_rng, site))


@triton.jit(do_not_specialize=_varying)
def _bits_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_words,  # int32 [num_rows, width]
    site,
    width,
    num_elements,
    BLOCK: tl.constexpr,
):
    o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_element = o_element < num_elements
    b_words = _words(p_offsets, p_rng, site, width, o_element, m_element)
    tl.store(p_words + o_element, b_words.to(tl.int32, bitcast=True), mask=m_element)


@triton.jit(do_not_specialize=_varying)
def _mask_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_factors,  # [num_rows, width]
    site,
    threshold,
    scale,
    width,
    num_elements,
    BLOCK: tl.constexpr,
):
    o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_element = o_element < num_elements
    b_words = _words(p_offsets, p_rng, site, width, o_element, m_element)
    tl.store(p_factors + o_element, dropout_factors(b_words, threshold, scale), mask=m_element)


def philox_bits(offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    """Words of the elements ``offsets[n] + j``, int32 [num_rows, width]."""
    _check("philox_bits", offsets, width, 0.0, rng, site)
    words = torch.empty(offsets.shape[0], width, dtype=torch.int32, device=offsets.device)
    tile = TABLE["dropout_mask"].constants
    grid = (triton.cdiv(words.numel(), tile["BLOCK"]),)
    arguments = offsets.contiguous(), rng.contiguous(), words, site, width, words.numel()
    launch(_bits_kernel, grid, *arguments, **tile)
    return words


def dropout_mask(
    offsets: Tensor, width: int, p: float, rng: Tensor, site: int, dtype: torch.dtype
) -> Tensor:
    """0 or 1 / (1 - p), [num_rows, width] of ``dtype``: float32, bfloat16 or float16."""
    _check("dropout_mask", offsets, width, p, rng, site)
    factors = torch.empty(offsets.shape[0], width, dtype=dtype, device=offsets.device)
    threshold, scale = dropout_numbers(p)
    scale = torch.tensor(scale, dtype=torch.float64).to(dtype).item()  # rounded once
    tile = TABLE["dropout_mask"].constants
    grid = (triton.cdiv(factors.numel(), tile["BLOCK"]),)
    numbers = site, threshold, scale, width, factors.numel()
    launch(_mask_kernel, grid, offsets.contiguous(), rng.contiguous(), factors, *numbers, **tile)
    return factors


def _check(op: str, offsets: Tensor, width: int, p: float, rng: Tensor, site: int) -> None:
    check_tensor(op, "offsets", offsets, torch.int64, (offsets.numel(),), offsets.device)
    check_dropout(op, p, rng, site, offsets.device)
    if width < 1:
        raise ValueError(f"{op}: width must be at least 1, got {width}")


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    offsets = torch.empty(8, dtype=torch.int64, device="meta")
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    yield "bits", lambda: philox_bits(offsets, 384, rng, 5)
    for dtype in (torch.float32, torch.bfloat16):
        yield f"mask {dtype}", lambda dtype=dtype: dropout_mask(offsets, 384, 0.1, rng, 5, dtype)
