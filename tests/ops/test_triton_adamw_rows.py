"""adamw_ema_rows_ in Triton: planted bugs at the edges of tiles, launches."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import adamw_rows as kernels
from tests.ops.triton_checks import assert_caught, assert_compiles_once, interpreted


@triton.jit
def _short_row_tile(i_tile, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A planted bug: the last feature of each row is masked."""
    o_row, o, m = _tile_rows(i_tile, num_rows, width, ROWS, BLOCK)
    return o_row, o, m & (o < width - 1)


@triton.jit
def _short_column_tile(i_tile, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A planted bug: the last row is masked."""
    return _tile_rows(i_tile, num_rows - 1, width, ROWS, BLOCK)


_tile_rows = kernels.tile_rows


@interpreted
@pytest.mark.parametrize("bug", [_short_row_tile, _short_column_tile])
@pytest.mark.parametrize("name", ["a row more", "whole tiles", "primes"])
def test_planted_bugs_at_the_edges_of_tiles_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "tile_rows", bug)
    assert_caught("adamw_ema_rows_", name, monkeypatch)


def test_other_values_compile_nothing():
    def run(num_rows, num_found, decay):
        x = torch.empty(num_rows, 384, device="meta")
        rows = x.new_empty(num_found, dtype=torch.int64)
        touched, scalar = x.new_empty(num_rows, dtype=torch.bool), x.new_empty(())
        state = x, x.new_empty(num_found, 384), rows, touched, x, x, x
        kernels.adamw_ema_rows_(*state, scalar, decay, 0.9, 0.999, 1e-8, scalar, scalar, 0.9)

    assert_compiles_once(*(partial(run, *sizes) for sizes in ((64, 3, 0.1), (1, 1, 0.0))))
