"""symmetric_kl in Triton: planted bugs at the edges of programs."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from sbrrt_fast.kernels import symmetric_kl as kernels
from tests.ops.triton_checks import assert_caught, interpreted

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"  # of what masks leave out
)
_tile = kernels._tile


@triton.jit
def _class_too_few(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """A planted bug: the last class of each row is masked."""
    o_row, o_class, m = _tile(num_rows, num_classes, ROWS, CLASSES)
    return o_row, o_class, m & (o_class < num_classes - 1)


@triton.jit
def _row_too_few(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """A planted bug: the last row is masked."""
    return _tile(num_rows - 1, num_classes, ROWS, CLASSES)


@interpreted
@pytest.mark.parametrize("bug", [_class_too_few, _row_too_few])
@pytest.mark.parametrize("name", ["whole programs, 0.5", "an example more, 0.5"])
def test_planted_bugs_at_the_edges_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "_tile", bug)
    assert_caught("symmetric_kl", name, monkeypatch)
