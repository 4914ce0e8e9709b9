"""bias_gelu's CUDA kernels on the CPU: the forward with the tangents of the last rows."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.cuda_on_cpu.kernels.gelu import GeluKernels
from tests.ops.cases import OPS
from tests.ops.cases.gelu import GeluCase

SAMPLES = OPS["bias_gelu"].table("cuda_on_cpu")


@pytest.mark.parametrize("num_tangents", [1, 3, None])
@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.startswith("no ")])
def test_forward_and_tangent_in_one_launch(name, num_tangents):
    """The bits of the two launches, for the last rows or all of them."""
    kernels = GeluKernels(GeluCase(SAMPLES[name]))
    num_rows = len(kernels.case.inputs[0])
    count = min(num_tangents or num_rows, num_rows)
    out, tangent = kernels.forward(count)
    assert torch.equal(out, kernels.value[0])
    assert torch.equal(tangent, kernels.tangent[0][num_rows - count :])


@pytest.mark.parametrize("name", OPS["bias_gelu"].orders)
def test_orders_of_threads_do_not_change_the_bits(name):
    case = GeluCase(SAMPLES[name])
    first = GeluKernels(case).forward(3)
    for seed in range(1, NUM_SEEDS + 1):
        found = GeluKernels(case, seed).forward(3)
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), seed
