"""smart_ascend's CUDA kernel, executed on the CPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sbrrt_fast.ops.smart_ascend import smart_ascend_reference
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    assert_same_bits_in_any_order,
    dense_rows,
    unwritten,
    with_stride,
)
from tests.ops.op_checks import BF16, F32, assert_as_good_as_stock
from tests.ops.test_smart_ascend_cpu import OPTIONS, SAMPLES, every_option, samples, tensors

F16 = torch.float16
DTYPES = list(itertools.product((F32, BF16, F16), repeat=2))


def ascend(delta, gradient, mask, sequence, num_sequences, *, seed=0, radius, **options):
    out, delta, gradient = (
        unwritten(*delta.shape, dtype=delta.dtype),
        dense_rows(delta),
        dense_rows(gradient),
    )
    rows = *with_stride(delta), delta.dtype, *with_stride(gradient), gradient.dtype
    library("smart_ascend").call(
        "ascend", len(delta), num_sequences, delta.shape[1], *rows, mask, sequence, out,
        options["step_size"], int(options["normalize_gradient"]),
        int(options["projection"] == "ball"), radius, int(options["norm"] == "inf"),
        int(options["level"] == "sequence"), seed=seed,
    )  # fmt: skip
    return out


def compare(inputs, options):
    """The kernel and the reference in float32 against the reference in float64."""
    delta, gradient, *rest = inputs
    exact = smart_ascend_reference(delta.double(), gradient.double(), *rest, **options)
    ours = ascend(*inputs, **options)
    stock = smart_ascend_reference(delta.float(), gradient.float(), *rest, **options)
    assert_as_good_as_stock(ours, stock.to(delta.dtype), exact)
    assert ours[~rest[0]].eq(0).all()


@every_option
def test_every_option_equals_the_reference(options):
    for radius in (1e-5, 0.5, 30.0):
        compare(tensors(SAMPLES["prime sizes"]), {**options, "radius": radius})


@samples
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_sample(sample, dtypes):
    for options in OPTIONS[::7]:
        compare(tensors(sample, *dtypes), {**options, "radius": 0.1})


def test_nothing_to_perturb():
    nothing = torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.bool)
    out = ascend(*nothing, torch.zeros(0, dtype=torch.int64), 0, radius=1.0, **OPTIONS[0])
    assert out.shape == (0, 5)
    x, masked = torch.randn(3, 5), torch.zeros(3, dtype=torch.bool)
    for options in OPTIONS[:2]:
        assert ascend(x, x, masked, torch.arange(3), 3, radius=1.0, **options).eq(0).all()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_tokens_of_no_sequence_are_not_perturbed(level):
    delta, gradient, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    options = {**OPTIONS[0], "level": level, "radius": 0.5}
    inside = sequence < number - 1
    expected = ascend(delta, gradient, mask & inside, sequence, number, **options)
    moved = torch.where(inside, sequence, torch.full_like(sequence, -1))
    assert torch.equal(ascend(delta, gradient, mask, moved, number, **options), expected)
    assert torch.equal(ascend(delta, gradient, mask, sequence, number - 1, **options), expected)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1e18, 1e30, 1e37])
def test_gradients_of_any_size_keep_their_direction(scale):
    inputs = tensors(SAMPLES["prime sizes"], scale=scale)
    delta, gradient, *rest = inputs
    for norm, level in itertools.product(("inf", "2"), ("token", "sequence")):
        options = {"normalize_gradient": True, "projection": "normalize", "radius": 0.02}
        options |= {"step_size": math.inf, "norm": norm, "level": level}
        expected = smart_ascend_reference(delta.double(), gradient.double(), *rest, **options)
        got = ascend(*inputs, **options).double()
        assert torch.allclose(got, expected, rtol=1e-6, atol=0.02 * 1e-6)


def test_a_zero_gradient_projects_the_old_perturbation():
    delta, _, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    for options in OPTIONS:
        inputs = delta, torch.zeros_like(delta), mask, sequence, number
        compare(inputs, {**options, "radius": 0.05})


def test_sequences_in_any_order():
    delta, gradient, mask, sequence, _ = tensors(SAMPLES["512 tokens"])
    sequence = torch.randint(5, sequence.shape)
    options = {**OPTIONS[-1], "radius": 0.5}
    exact = smart_ascend_reference(delta.double(), gradient.double(), mask, sequence, 5, **options)
    got = ascend(delta, gradient, mask, sequence, 5, **options)
    assert torch.allclose(got.double(), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [40, 37])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_same_bits_in_any_order_of_threads(width, level):
    inputs = tensors(([50, 3, 11], width, "dense"))
    chosen = [o for o in OPTIONS if o["level"] == level][::5]
    assert_same_bits_in_any_order(
        lambda seed: [ascend(*inputs, radius=0.1, seed=seed, **options) for options in chosen]
    )
