"""The CUDA kernel on the CPU that sums a matrix's columns for the row ops' backward passes."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import column_sums, unwritten


@pytest.mark.parametrize(("height", "width"), [(0, 5), (1, 1), (3, 64), (67, 33)])
def test_column_sums(height, width):
    x = torch.randn(height, width)
    assert torch.allclose(column_sums(x).double(), x.double().sum(0), rtol=1e-6, atol=1e-5)


def test_column_sums_of_several_gradients():
    """Each goes where it is wanted; parts end within a block's columns."""
    x, (first, third) = torch.randn(67, 3 * 33), (unwritten(33), unwritten(33))
    library("column_sums").call("sums", x, 67, 33, 3, first, None, third)
    assert torch.equal(torch.cat([first, third]), column_sums(x)[[*range(33), *range(66, 99)]])
