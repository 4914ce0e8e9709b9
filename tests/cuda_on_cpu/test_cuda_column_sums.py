"""The CUDA kernel on the CPU that sums columns, of layers and of what other kernels left."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.cuda_on_cpu.cuda_rows import column_sums, layer_sums, unwritten
from tests.ops.op_checks import BF16, F32
from tests.ops.op_references import REFERENCES


@pytest.mark.parametrize(("height", "width"), [(0, 5), (1, 1), (3, 64), (67, 33)])
def test_column_sums(height, width):
    x = torch.randn(height, width)
    assert torch.allclose(column_sums(x).double(), x.double().sum(0), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0, 1), (0,), (1,)])
def test_column_sums_of_two_gradients(wanted):
    """Each goes where it is wanted; parts end within a block's columns."""
    x, out = torch.randn(67, 2 * 33), [unwritten(33) if i in wanted else None for i in range(2)]
    library("column_sums").call("sums", 2, 67, 33, F32, x, 33, 66, None, 0, out[0], 0, out[1])
    for i in wanted:
        assert torch.equal(out[i], column_sums(x).split(33)[i])


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize(("layers", "height", "width"), [(3, 0, 5), (1, 1, 1), (5, 67, 33)])
def test_layers(layers, height, width, share, dtype):
    """Layers that lie between each other's rows, into rows with gaps."""
    x = torch.randn(height, layers, width + 4).to(dtype)[..., :width].transpose(0, 1)
    weights = None if share is None else torch.randn(int(share * height))
    out = unwritten(layers, width, gap=3)
    layer_sums(x, weights, out)
    (exact,) = REFERENCES["column_sums_into"](x, weights)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=2e-5)
    assert out._base[:, width:].isnan().all()


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
def test_orders_of_threads_do_not_change_the_bits(dtype):
    x, weights, found = torch.randn(2, 67, 40).to(dtype), torch.randn(30), []
    for seed in range(NUM_SEEDS + 1):
        found.append(unwritten(2, 40))
        layer_sums(x, weights, found[-1], seed)
    assert all(torch.equal(out, found[0]) for out in found)


def test_more_layers_than_results_are_refused():
    x, out = torch.randn(3, 2, 5), unwritten(5)
    with pytest.raises(CudaError, match="returned error 1"):
        library("column_sums").call("sums", 3, 2, 5, F32, x, 10, 5, None, 0, out, 0, out)
