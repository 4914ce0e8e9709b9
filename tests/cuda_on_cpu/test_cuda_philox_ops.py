"""dropout_mask, philox_bits and smart_noise: their CUDA kernels, executed on the CPU."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask_reference, philox_bits_reference, philox_normal
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import assert_same_bits_in_any_order
from tests.ops.op_checks import RNG, SITE
from tests.ops.test_smart_noise import SAMPLES as NOISE_SAMPLES

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# offsets, width
SAMPLES = {
    "one element": (torch.tensor([6]), 1),
    "any offset": (torch.tensor([0, 1, 2, 3, 1027, 2**34 - 5]), 37),
    "any offset, whole blocks": (torch.tensor([0, 1, 2, 3, 1027, 2**34 - 5]), 24),
    "at the end": (torch.tensor([2**63 - 1 - 13]), 13),
    "several blocks of threads": (torch.arange(31) * 64, 64),
    "no rows": (torch.empty(0, dtype=torch.int64), 8),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def call(function, offsets, width, dtype, *others, rng=RNG, site=SITE, seed=0):
    offsets = offsets.contiguous()
    out = torch.full((len(offsets), width), -1, dtype=dtype)
    arguments = (len(offsets), width, rng, offsets, site, out, *others)
    library("philox_ops").call(function, *arguments, seed=seed)
    return out


def mask(offsets, width, p, dtype, **settings):
    scale = torch.tensor([1.0 / (1.0 - p)], dtype=torch.float64).to(dtype)
    size = dtype.itemsize
    kept = int(scale.view(INTEGERS[size]))
    return call("mask", offsets, width, dtype, p, kept, size, **settings)


@samples
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.9])
def test_masks_are_the_reference_s(sample, dtype, p):
    expected = dropout_mask_reference(*sample, p, RNG, SITE, dtype)
    assert torch.equal(mask(*sample, p, dtype), expected)


@samples
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (-1, 2**32 - 1), (2**63 - 1, 7)])
def test_words_are_the_reference_s(sample, seed, step):
    rng, site = torch.tensor([seed, step]), 2**32 - 1
    expected = philox_bits_reference(*sample, rng, site)
    assert torch.equal(call("bits", *sample, torch.int32, rng=rng, site=site), expected)


@pytest.mark.parametrize("name", [name for name in NOISE_SAMPLES if name != "one long row"])
def test_noise_equals_the_reference(name):
    """One unit in the last place, and what float64's rounding of the angle leaves near zeros."""
    offsets, width = NOISE_SAMPLES[name]
    got = call("noise", offsets, width, torch.float32).double()
    expected = philox_normal(offsets, width, RNG, SITE, backend="reference").double()
    assert ((got - expected).abs() <= 1.2e-7 * expected.abs() + 1e-14).all()


def test_noise_near_the_smallest_and_the_largest_radius():
    offsets, width = torch.arange(64) * 2048, 2048
    got = call("noise", offsets, width, torch.float32).double()
    expected = philox_normal(offsets, width, RNG, SITE, backend="reference").double()
    radius, exact = (x.reshape(-1, 2).norm(dim=1) for x in (got, expected))
    assert exact.min() < 0.01
    assert exact.max() > 4.5
    assert torch.allclose(radius, exact, rtol=2e-7, atol=0)


@pytest.mark.parametrize("width", [24, 37])
def test_same_bits_in_any_order_of_threads(width):
    offsets = torch.arange(9) * 40 + 1

    def run(seed):
        results = [mask(offsets, width, 0.3, dtype, seed=seed) for dtype in DTYPES]
        results.append(call("bits", offsets, width, torch.int32, seed=seed))
        if width % 4 == 0:
            results.append(call("noise", offsets, width, torch.float32, seed=seed))
        return results

    assert_same_bits_in_any_order(run)
