"""The machine that runs kernels on the CPU: what it computes, and each planted bug it must catch."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu import library


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kernel_with_barriers_and_shuffles(variant: str, seed: int) -> None:
    x = torch.rand(3, 301) + 0.5
    y = torch.full_like(x, float("nan"))
    library("example", variant).call("scale_rows_forward", x, y, 3, 301, seed=seed)
    torch.testing.assert_close(y, x / x.sum(1, keepdim=True))
