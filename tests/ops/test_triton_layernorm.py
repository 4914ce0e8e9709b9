"""dropout_add_layernorm in Triton: planted bugs in the masks, the shape of tiles."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from sbrrt_fast.kernels import layernorm_rows, rows
from tests.ops.cases import OPS
from tests.ops.test_layernorm import wrong_elements
from tests.ops.triton_checks import assert_caught, interpreted

SAMPLES = OPS["dropout_add_layernorm"].table("triton")


@triton.jit
def _flip_last_of_tile(
    p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr
):
    """A planted bug: the mask is wrong at the last feature of the last row of each tile."""
    b_factor = rows.row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    num_in_tile = o_row.shape[0]
    is_last = (o_row % num_in_tile == num_in_tile - 1) & (tl.arange(0, BLOCK) == 31)[None, :]
    return tl.where(is_last, dropout[2] - b_factor, b_factor)


@triton.jit
def _always_aligned(p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr):
    """A planted bug: every row begins a Philox block."""
    i_first = tl.reshape(o_row, (o_row.shape[0],))
    i_first = tl.load(p_offsets + i_first, mask=i_first < num_rows, other=0)
    b_words = rows.row_words(i_first, BLOCK, dropout[0], True)
    return rows.dropout_factors(b_words, dropout[1], dropout[2])


@interpreted
def test_planted_bugs_in_the_masks_are_caught(monkeypatch):
    monkeypatch.setattr(layernorm_rows, "row_factors", _flip_last_of_tile)
    assert wrong_elements("triton", SAMPLES["two tiles of rows"]) == 2
    assert wrong_elements("triton", SAMPLES["a row less"]) == 1
    assert_caught("dropout_add_layernorm", "two tiles of rows", monkeypatch)
    monkeypatch.setattr(layernorm_rows, "row_factors", _always_aligned)
    assert wrong_elements("triton", SAMPLES["two tiles of rows"]) == 0
    assert wrong_elements("triton", SAMPLES["primes"]) > 300


@pytest.mark.parametrize("width", [1, 15, 16, 131, 384, 512, 513, 768, 1024, 4096, 8192])
def test_tiles_hold_whole_rows_and_programs_enough_of_them(width):
    tile = rows.row_tile("layernorm backward", width)
    assert tile["BLOCK"] >= width > tile["BLOCK"] // 2 or tile["BLOCK"] == 16
    assert tile["num_warps"] in (1, 2, 4, 8, 16)
    assert tile["ROWS"] * tile["BLOCK"] <= 16 * 32 * tile["num_warps"]
    for num_rows in (1, 5, 650, 2048, 2049, 100_000):
        num_tiles = rows.tiles_per_program(num_rows, tile["ROWS"])
        num_programs = triton.cdiv(num_rows, num_tiles * tile["ROWS"])
        assert num_tiles * tile["ROWS"] >= 4
        assert num_programs <= 512
