"""smart_noise in Triton against Box and Muller in float64."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import smart_noise as kernels
from sbrrt_fast.ops.dropout import philox_normal
from sbrrt_fast.ops.smart_noise import smart_noise
from tests.ops.op_checks import RNG, SITE
from tests.ops.triton_checks import (
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
    on_device,
    poisoned,
)

op = torch.ops.sbrrt_triton.smart_noise

# offsets, width
SAMPLES = {
    "one row": (torch.tensor([0]), 384),
    "no rows": (torch.empty(0, dtype=torch.int64), 8),
    "bert-base": (torch.arange(7) * 768, 768),
    "narrow": (torch.randperm(41) * 4, 4),
    "whole tiles": (torch.arange(4) * 256, 256),
    "four columns more": (torch.arange(3) * 260, 260),
    "any offset": (torch.tensor([1, 2, 3, 1027, 2**34 - 5]), 388),
    "one odd offset": (torch.tensor([0, 64, 129, 192]), 64),
    "at the end": (torch.tensor([2**63 - 1 - 12]), 12),
    "strided offsets": (torch.arange(40)[::3] * 64, 64),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def ours(offsets, width, rng=RNG, site=SITE):
    return on_device(smart_noise, offsets, width, rng, site, backend="triton")


def compare(offsets, width, rng=RNG, site=SITE):
    """One unit in the last place, and what float64's rounding of the angle leaves near zeros."""
    got = ours(offsets, width, rng, site)
    expected = philox_normal(offsets, width, rng, site, backend="reference")
    assert got.dtype == torch.float32 and got.shape == (len(offsets), width)
    difference = (got.double() - expected.double()).abs()
    assert (difference <= 1.2e-7 * expected.double().abs() + 1e-14).all()


@samples
def test_equals_the_reference(sample):
    compare(*sample)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (-1, 2**32 - 1), (2**63 - 1, 7)])
def test_equals_the_reference_for_any_key(seed, step):
    compare(torch.arange(16) * 512, 512, torch.tensor([seed, step]), 2**32 - 1)


def test_is_standard_normal():
    x = ours(torch.arange(64) * 1024, 1024).double().reshape(-1)
    count = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(count)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((x[::2] * x[1::2]).mean()) < 5 / math.sqrt(count / 2)


def test_rows_do_not_depend_on_their_neighbours():
    whole = ours(torch.arange(9) * 384, 384)
    for row in (0, 4, 8):
        assert torch.equal(ours(torch.tensor([row * 384]), 384)[0], whole[row])


@triton.jit
def _all_aligned(i_first, WIDTH: tl.constexpr, stream, ALIGNED: tl.constexpr):
    """A planted bug: every row begins a Philox block."""
    return _row_normals(i_first, WIDTH, stream, True)


_row_normals = kernels.row_normals


@interpreted
@pytest.mark.parametrize("name", ["any offset", "one odd offset"])
def test_a_planted_bug_at_odd_offsets_is_caught(name, monkeypatch):
    monkeypatch.setattr(kernels, "row_normals", _all_aligned)
    compare(*SAMPLES["whole tiles"])
    with pytest.raises(AssertionError):
        compare(*SAMPLES[name])


def test_the_same_bits_every_time():
    assert_same_bits(lambda: [ours(*SAMPLES["any offset"])])


def test_every_result_is_written(monkeypatch):
    with poisoned(monkeypatch):
        assert not ours(*SAMPLES["four columns more"]).isnan().any()


@samples
def test_opcheck(sample):
    torch.library.opcheck(op.default, tuple(here([*sample, RNG, SITE])))


def test_compiled_in_one_graph():
    offsets = torch.arange(7) * 32
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(offsets, 32), ours(offsets, 32))


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_rows: int):
        offsets = torch.empty(num_rows, dtype=torch.int64, device="meta")
        kernels.smart_noise(offsets, 384, torch.empty(2, dtype=torch.int64, device="meta"), 16)

    assert_compiles_once(*(lambda n=n: run(n) for n in (1, 8, 16, 5000)))


def test_a_tensor_elsewhere_is_refused():
    with pytest.raises(BackendError, match="offsets is on meta, not"):
        smart_noise(torch.empty(3, device="meta"), 8, RNG, SITE, backend="triton")


BAD = [
    ("offsets", torch.tensor([0.0]), TypeError, r"offsets must have dtype torch\.int64"),
    ("offsets", torch.tensor([[0]]), ValueError, r"offsets must be a dense tensor of shape \[1\]"),
    ("width", 0, ValueError, "width must be a positive multiple of 4, got 0"),
    ("width", 6, ValueError, "width must be a positive multiple of 4, got 6"),
    ("rng", torch.tensor([1, 2, 3]), ValueError, "rng must be"),
    ("site", 2**32, ValueError, "site must be in"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    good = {"offsets": torch.tensor([0, 8]), "width": 8, "rng": RNG, "site": SITE}
    with pytest.raises(error, match=f"smart_noise: {message}"):
        kernels.smart_noise(**{**good, argument: value})
