"""smart_noise in Triton: a planted bug at offsets that begin no Philox block."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from sbrrt_fast.kernels import draws as kernels
from tests.ops.backends import assert_all_right
from tests.ops.cases import OPS
from tests.ops.triton_checks import assert_caught, interpreted


@triton.jit
def _all_aligned(i_first, COLUMNS: tl.constexpr, stream, ALIGNED: tl.constexpr):
    """A planted bug: every row begins a Philox block."""
    return _row_normals(i_first, COLUMNS, stream, True)


_row_normals = kernels.row_normals


@interpreted
@pytest.mark.parametrize("name", ["any offset", "one odd offset"])
def test_a_planted_bug_at_odd_offsets_is_caught(name, monkeypatch):
    monkeypatch.setattr(kernels, "row_normals", _all_aligned)
    op = OPS["smart_noise"]
    assert_all_right(op, "triton", op.triton["whole tiles"])
    assert_caught("smart_noise", name, monkeypatch)
