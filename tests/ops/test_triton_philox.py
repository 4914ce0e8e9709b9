"""The Philox of the Triton kernels draws the bits of ops.dropout."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import philox
from sbrrt_fast.ops.dropout import dropout_mask, philox_bits, philox_normal
from tests.ops.triton_only import DEVICE

WIDTH = 16

# offsets, seed, step, site
SAMPLES = {
    "first elements": ([0, 16, 32], 1, 0, 0),
    "beyond 32 bits": ([2**34 - 4, 2**62 + 16, 2**63 - 64], 2**63 - 1, 2**32 - 1, 2**32 - 1),
    "negative seed": ([4, 8, 1028], -(2**63) + 5, 7, 2**31),
    "overlapping rows": ([0, 4, 0], 77, 2**31, 16),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


@triton.jit
def _words_kernel(
    p_offsets,  # int64 [num_rows]
    p_rng,  # int64 [2]
    p_words,  # int32 [num_rows, WIDTH]
    p_factors,  # float32 [num_rows, WIDTH]
    site,
    threshold,
    scale,
    num_rows,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    o_row = tl.arange(0, 4)
    m_row = o_row < num_rows
    i_first = tl.load(p_offsets + o_row, mask=m_row, other=0)
    b_words = philox.row_words(i_first, WIDTH, philox.load_stream(p_rng, site), ALIGNED)
    o_out = o_row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(p_words + o_out, b_words.to(tl.int32, bitcast=True), mask=m_row[:, None])
    b_factors = philox.dropout_factors(b_words, threshold, scale)
    tl.store(p_factors + o_out, b_factors, mask=m_row[:, None])


@triton.jit
def _normal_kernel(
    p_offsets,  # int64 [num_rows], multiples of 4
    p_rng,  # int64 [2]
    p_out,  # float32 [num_rows, WIDTH]
    site,
    WIDTH: tl.constexpr,
):
    i_row = tl.program_id(0)
    i_block = tl.load(p_offsets + i_row) // 4 + tl.arange(0, WIDTH // 4)[None, :]
    b_out = philox.block_normals(i_block, philox.load_stream(p_rng, site))
    tl.store(p_out + i_row * WIDTH + tl.arange(0, WIDTH)[None, :], b_out)


def draw(sample: tuple, p: float, aligned: bool, shift: int = 0):
    """Words and factors of a sample's elements ``offsets[n] + shift + j``."""
    offsets, seed, step, site = sample
    offsets = torch.tensor(offsets, device=DEVICE) + shift
    rng = torch.tensor([seed, step], device=DEVICE)
    words = torch.empty(len(offsets), WIDTH, dtype=torch.int32, device=DEVICE)
    factors = torch.empty(len(offsets), WIDTH, dtype=torch.float32, device=DEVICE)
    numbers = philox.dropout_numbers(p)
    arguments = offsets, rng, words, factors, site, *numbers, len(offsets), WIDTH, aligned
    _words_kernel[(1,)](*arguments)
    place = offsets.cpu(), WIDTH
    return words.cpu(), factors.cpu(), place, rng.cpu(), site


@samples
@pytest.mark.parametrize(("aligned", "shift"), [(True, 0), (False, 0), (False, 1), (False, 3)])
def test_words_equal_the_reference(sample, aligned, shift):
    words, _, place, rng, site = draw(sample, 0.5, aligned, shift)
    assert torch.equal(words, philox_bits(*place, rng, site, backend="reference"))


@samples
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1 - 2**-32])
@pytest.mark.parametrize("aligned", [True, False])
def test_factors_equal_the_reference(sample, p, aligned):
    _, factors, place, rng, site = draw(sample, p, aligned)
    assert torch.equal(factors, dropout_mask(*place, p, rng, site, backend="reference"))


def test_threshold_is_inclusive():
    sample = SAMPLES["first elements"]
    words = draw(sample, 0.5, True)[0].to(torch.int64) & 0xFFFFFFFF
    word = int(words[1, 6])
    for p, is_kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
        assert bool(draw(sample, p, True)[1][1, 6] > 0) is is_kept


@samples
def test_normals_equal_the_reference(sample):
    offsets, seed, step, site = sample
    place, rng = torch.tensor(offsets), torch.tensor([seed, step])
    out = torch.full((len(offsets), WIDTH), float("nan"), device=DEVICE)
    _normal_kernel[(len(offsets),)](place.to(DEVICE), rng.to(DEVICE), out, site, WIDTH)
    expected = philox_normal(place, WIDTH, rng, site, backend="reference")
    ulp = 2.0**-23  # float64 libraries may round a float32 differently by one place
    torch.testing.assert_close(out.cpu(), expected, rtol=ulp, atol=0)


@samples
def test_masks_in_bfloat16_equal_the_reference(sample):
    """Whose two factors the interpreter stores as a GPU does."""
    offsets, seed, step, site = sample
    place, rng = (torch.tensor(x, device=DEVICE) for x in (offsets, [seed, step]))
    by_triton, expected = (
        dropout_mask(place, 37, 0.3, rng, site, torch.bfloat16, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(by_triton, expected)
