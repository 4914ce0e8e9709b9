"""smart_noise in C++ against Box and Muller in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops.dropout import philox_bits, philox_normal
from sbrrt_fast.ops.smart_noise import smart_noise
from tests.ops.op_checks import RNG, SITE, fuzz, num_threads, run_with_capability

assert extension is not None, extension_error
op = torch.ops.sbrrt.smart_noise

# offsets, width
SAMPLES = {
    "one row": (torch.tensor([0]), 384),
    "no rows": (torch.empty(0, dtype=torch.int64), 8),
    "bert-base": (torch.arange(31) * 768, 768),
    "narrow": (torch.randperm(97) * 4, 4),
    "one long row": (torch.tensor([12]), 100_004),
    "any offset": (torch.tensor([1, 2, 3, 1027, 2**34 - 5]), 388),
    "at the end": (torch.tensor([2**63 - 1 - 12]), 12),
    "strided offsets": (torch.arange(40)[::3] * 64, 64),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def compare(offsets, width, rng=RNG, site=SITE):
    """One unit in the last place, and what float64's rounding of the angle leaves near zeros."""
    got = smart_noise(offsets, width, rng, site, backend="cpu")
    expected = philox_normal(offsets, width, rng, site, backend="reference")
    assert got.dtype == torch.float32
    assert got.shape == (len(offsets), width)
    difference = (got.double() - expected.double()).abs()
    assert (difference <= 1.2e-7 * expected.double().abs() + 1e-14).all()


@samples
def test_equals_the_reference(sample):
    compare(*sample)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (-1, 2**32 - 1), (2**63 - 1, 7)])
def test_equals_the_reference_for_any_key(seed, step):
    compare(torch.arange(64) * 512, 512, torch.tensor([seed, step]), 2**32 - 1)


def test_radius_next_to_one_and_zero():
    """Words near 2^32 give radii near 0, small words the longest; both keep their digits."""
    words = philox_bits(torch.tensor([0]), 2**22, RNG, SITE).numpy().view(np.uint32)[0]
    first = words[::2].astype(np.float64)
    pairs = smart_noise(torch.tensor([0]), 2**22, RNG, SITE, backend="cpu").double()
    radius = pairs.view(-1, 2).norm(dim=1).numpy()
    expected = np.sqrt(-2 * np.log1p((first + 1 - 2**32) / 2**32))
    for index in (first.argmax(), first.argmin()):
        assert radius[index] == pytest.approx(expected[index], rel=2e-7)
    assert np.allclose(radius, expected, rtol=2e-7)


def test_is_standard_normal():
    x = smart_noise(torch.arange(256) * 1024, 1024, RNG, SITE).double().reshape(-1)
    count = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(count)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((x[::2] * x[1::2]).mean()) < 5 / math.sqrt(count / 2)
    inside = torch.special.ndtr(torch.tensor(1.0, dtype=torch.float64)).item() * 2 - 1
    share = (x.abs() < 1).double().mean().item()
    assert abs(share - inside) < 5 * math.sqrt(inside * (1 - inside) / count)


def test_rows_do_not_depend_on_their_neighbours():
    whole = smart_noise(torch.arange(9) * 384, 384, RNG, SITE)
    for row in (0, 4, 8):
        assert torch.equal(smart_noise(torch.tensor([row * 384]), 384, RNG, SITE)[0], whole[row])


def test_same_bits_for_any_number_of_threads_and_again():
    offsets, results = torch.arange(400) * 384, []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append(smart_noise(offsets, 384, RNG, SITE, backend="cpu"))
    assert all(torch.equal(results[0], result) for result in results)


def check_values():
    """For every instruction set."""
    for sample in SAMPLES.values():
        compare(*sample)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set(capability):
    name = run_with_capability("tests.ops.test_smart_noise", capability)
    assert name.lower().replace("plain", "default") == capability


BAD = [
    ("offsets", torch.tensor([0.0]), TypeError, "offsets must have dtype Long"),
    ("offsets", torch.tensor([[0]]), ValueError, r"offsets must be .* shape \[N\]"),
    ("offsets", torch.tensor([4, -4]), ValueError, r"offsets must be in .*, got -4"),
    ("offsets", torch.tensor([2**63 - 8]), ValueError, r"offsets must be in \[0, 2\^63 - width\)"),
    ("width", 0, ValueError, "width must be a positive multiple of 4, got 0"),
    ("width", 6, ValueError, "width must be a positive multiple of 4, got 6"),
    ("width", -8, ValueError, "width must be a positive multiple of 4, got -8"),
    ("rng", torch.tensor([1, 2, 3]), ValueError, "rng must be"),
    ("rng", torch.tensor([1, -1]), ValueError, "step, the second value of rng"),
    ("site", 2**32, ValueError, "site must be in"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    good = {"offsets": torch.tensor([0, 8]), "width": 8, "rng": RNG, "site": SITE}
    with pytest.raises(error, match=f"sbrrt::smart_noise: {message}"):
        op(**{**good, argument: value})
    if argument == "width":
        with pytest.raises(error, match=f"smart_noise: {message}"):
            smart_noise(good["offsets"], value, RNG, SITE, backend="reference")


@samples
def test_opcheck(sample):
    torch.library.opcheck(op.default, (*sample, RNG, SITE))


def test_compiled():
    offsets = torch.arange(7) * 32
    compiled = torch.compile(smart_noise, fullgraph=True, backend="aot_eager")
    expected = smart_noise(offsets, 32, RNG, SITE)
    assert torch.equal(compiled(offsets, 32, RNG, SITE), expected)


def test_fuzzed_calls_answer_or_raise():
    assert fuzz(op, lambda: [torch.arange(5) * 8, 8, RNG, SITE], 3000) > 500
