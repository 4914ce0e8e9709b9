"""smart_noise's own: its distribution, its smallest and largest radii, its rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbrrt_fast.ops.smart_noise import smart_noise
from tests.ops.backends import INTERPRETED, backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.smart import NoiseCase
from tests.ops.op_checks import RNG, SITE

OP = OPS["smart_noise"]
every_backend = backends_of("smart_noise", "cuda_on_cpu")


def noise(backend: str, offsets: list[int], width: int) -> torch.Tensor:
    case = NoiseCase((tuple(offsets), width, *RNG.tolist(), SITE))
    return run(OP, backend, case).value[0].cpu()


def num_pairs(backend: str) -> int:
    """As many as an interpreter makes in a second."""
    slow = backend == "cuda_on_cpu" or (backend == "triton" and INTERPRETED)
    return 2**16 if slow else 2**21


@every_backend
def test_the_smallest_and_the_largest_radius(backend):
    """Words near 2^32 give radii near 0, small words the longest; both keep their digits."""
    width, count = 2048, num_pairs(backend) // 1024
    case = NoiseCase((tuple(range(0, count * width, width)), width, *RNG.tolist(), SITE))
    first = case.words().reshape(-1)[::2].astype(np.float64)
    radius = run(OP, backend, case).value[0].cpu().double().view(-1, 2).norm(dim=1).numpy()
    expected = np.sqrt(-2 * np.log1p((first + 1 - 2**32) / 2**32))
    assert expected.min() < 0.01
    assert expected.max() > 4.5
    np.testing.assert_allclose(radius, expected, rtol=2e-7)


@every_backend
def test_is_standard_normal(backend):
    rows = 32 if num_pairs(backend) < 2**20 else 256
    x = noise(backend, range(0, rows * 1024, 1024), 1024).double().reshape(-1)
    count = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(count)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((x[::2] * x[1::2]).mean()) < 5 / math.sqrt(count / 2)
    inside = torch.special.ndtr(torch.tensor(1.0, dtype=torch.float64)).item() * 2 - 1
    share = (x.abs() < 1).double().mean().item()
    assert abs(share - inside) < 5 * math.sqrt(inside * (1 - inside) / count)


@every_backend
def test_rows_do_not_depend_on_their_neighbours(backend):
    whole = noise(backend, range(0, 9 * 384, 384), 384)
    for row in (0, 4, 8):
        assert torch.equal(noise(backend, [row * 384], 384)[0], whole[row])


@pytest.mark.parametrize("width", [0, 6, -8])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_width_that_is_no_multiple_of_4(width, backend):
    message = f"smart_noise: width must be a positive multiple of 4, got {width}"
    with pytest.raises(ValueError, match=message):
        smart_noise(torch.tensor([0, 8]), width, RNG, SITE, backend=backend)
