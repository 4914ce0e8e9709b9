"""bias_gelu in Triton: planted bugs at the edges of tiles."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from sbrrt_fast.kernels import gelu as kernels
from tests.ops.triton_checks import assert_caught, interpreted


@triton.jit
def _forgets_the_last_column(num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A planted bug: a tile's mask leaves out its last column."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = (o_column < width) & (tl.arange(0, COLUMNS) < COLUMNS - 1)
    return o_row, o_column, (o_row < num_rows) & m_column[None, :]


@triton.jit
def _forgets_the_last_row(num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A planted bug: the mask leaves out the last row."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return o_row, o_column, (o_row < num_rows - 1) & (o_column < width)[None, :]


@interpreted
@pytest.mark.parametrize("bug", [_forgets_the_last_column, _forgets_the_last_row])
@pytest.mark.parametrize("name", ["whole tiles", "a row and a feature more"])
def test_planted_bugs_at_the_edges_of_tiles_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "_tile", bug)
    assert_caught("bias_gelu", name, monkeypatch)
