"""SMART's noise and ascent step on a round's tokens, against plain PyTorch.

``stock`` is the ascent a user would write for one preset alone, without care for zero or tiny
gradients. The ascent reads delta and gradient twice and writes once: 20 bytes per element, most of
them from cache. The noise writes 4 bytes per element.
"""

from __future__ import annotations

import math

import pytest
import torch

from sbrrt_fast.ops.smart_ascend import smart_ascend
from sbrrt_fast.ops.smart_noise import smart_noise

# sequences of 5 to 40 tokens, mean near 18; 300 tokens of one task, 712 of a round
SHAPES = {"minilm-300": (17, 384), "minilm-712": (40, 384), "bert-base-712": (40, 768)}
PRESETS = {
    "paper": (1e-3, True, "ball", 1e-5, "inf", "sequence"),
    "mtdnn": (1e-3, False, "normalize", 1.0, "inf", "token"),
    "adversarial": (math.inf, True, "normalize", 0.02, "inf", "token"),
    "two-norm": (1e-1, True, "ball", 0.1, "2", "sequence"),
}


def of_sequences(rows, sequence, num_sequences, reduce):
    """[num_tokens] -> the reduction over each token's sequence, [num_tokens, 1]."""
    zeros = rows.new_zeros(num_sequences)
    return zeros.scatter_reduce(0, sequence, rows, reduce)[sequence][:, None]


def stock_paper(delta, gradient, mask, sequence, num_sequences):
    largest = (gradient * mask[:, None]).abs().amax(-1)
    size = of_sequences(largest, sequence, num_sequences, "amax")
    return (delta + 1e-3 * gradient / size).clamp(-1e-5, 1e-5) * mask[:, None]


def stock_mtdnn(delta, gradient, mask, sequence, num_sequences):
    moved = delta + 1e-3 * gradient
    return moved / moved.abs().amax(-1, keepdim=True) * mask[:, None]


def stock_adversarial(delta, gradient, mask, sequence, num_sequences):
    return 0.02 * gradient / gradient.abs().amax(-1, keepdim=True) * mask[:, None]


def stock_two_norm(delta, gradient, mask, sequence, num_sequences):
    groups = sequence, num_sequences, "sum"
    gradient = gradient * mask[:, None]
    moved = (
        delta * mask[:, None]
        + 1e-1 * gradient / of_sequences(gradient.square().sum(-1), *groups).sqrt()
    )
    return moved * (0.1 / of_sequences(moved.square().sum(-1), *groups).sqrt()).clamp(max=1)


STOCK = {
    "paper": stock_paper,
    "mtdnn": stock_mtdnn,
    "adversarial": stock_adversarial,
    "two-norm": stock_two_norm,
}
NAMES = ("step_size", "normalize_gradient", "projection", "radius", "norm", "level")
shapes = pytest.mark.parametrize("shape", list(SHAPES))


def lengths_of(num_sequences):
    generator = torch.Generator().manual_seed(1)
    lengths = 5 + torch.empty(num_sequences).exponential_(1 / 13, generator=generator)
    return lengths.clamp(max=40).long()


def inputs(shape):
    """delta, gradient, mask of inner tokens, sequence of each token, number of sequences."""
    num_sequences, width = SHAPES[shape]
    torch.manual_seed(0)
    lengths = lengths_of(num_sequences)
    sequence = torch.repeat_interleave(torch.arange(num_sequences), lengths)
    delta, gradient = 1e-5 * torch.randn(len(sequence), width), torch.randn(len(sequence), width)
    mask = torch.ones(len(sequence), dtype=torch.bool)
    mask[torch.cumsum(lengths, 0) - 1] = False
    return delta, gradient, mask, sequence, num_sequences


@shapes
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("variant", ["cpu", "reference", "stock"])
def test_smart_ascend(benchmark, variant, preset, shape):
    arguments, options = inputs(shape), dict(zip(NAMES, PRESETS[preset], strict=True))
    call, keywords = smart_ascend, {**options, "backend": variant}
    if variant == "stock":
        call, keywords = STOCK[preset], {}
    expected = smart_ascend(*arguments, **options, backend="reference")
    # What cancels is up to 5 radii long, so half an ulp of it is 3e-7 of the radius.
    close = {"rtol": 1e-5, "atol": 6e-7 * options["radius"]}
    assert torch.allclose(call(*arguments, **keywords), expected, **close)
    benchmark.group = f"{preset} {shape}"
    benchmark.extra_info["bytes"] = 20 * arguments[0].numel()
    benchmark(call, *arguments, **keywords)


def torch_randn(offsets, width):
    return torch.randn(len(offsets), width)


def cpu(offsets, width):
    return smart_noise(offsets, width, torch.tensor([17, 5]), 2, backend="cpu")


def reference(offsets, width):
    return smart_noise(offsets, width, torch.tensor([17, 5]), 2, backend="reference")


@shapes
@pytest.mark.parametrize("variant", [cpu, reference, torch_randn], ids=lambda f: f.__name__)
def test_smart_noise(benchmark, variant, shape):
    delta, *_ = inputs(shape)
    width = delta.shape[1]
    offsets = torch.arange(delta.shape[0]) * width
    got = variant(offsets, width)
    if variant is torch_randn:  # other numbers, the same distribution
        assert abs(got.double().var() - 1) < 0.02
    else:
        assert torch.allclose(got, reference(offsets, width), rtol=1e-6, atol=1e-14)
    benchmark.group = f"noise {shape}"
    benchmark.extra_info["bytes"] = 4 * got.numel()
    benchmark(variant, offsets, width)
