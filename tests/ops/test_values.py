"""Every op's result on every backend: at most twice stock PyTorch's error against float64."""

from __future__ import annotations

from tests.ops.backends import assert_right, params


@params()
def test_values(op, backend, sample):
    assert_right(op, backend, sample, "value")
