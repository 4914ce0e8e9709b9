"""Dropout masks at a round's real sizes: C++ against the reference and torch.dropout."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask

P, RNG, SITE = 0.1, torch.tensor([17, 5]), 2
# rows x width: hidden states of ~700 tokens (MiniLM, bert-base); one layer's attention
SHAPES = {"hidden-384": (712, 384), "hidden-768": (712, 768), "attention": (40 * 12 * 35, 36)}


def cpp(offsets, width):
    return dropout_mask(offsets, width, P, RNG, SITE, backend="cpu")


def reference(offsets, width):
    return dropout_mask(offsets, width, P, RNG, SITE, backend="reference")


def torch_dropout(offsets, width):
    return torch.dropout(torch.ones(len(offsets), width), P, train=True)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("variant", [cpp, reference, torch_dropout], ids=lambda f: f.__name__)
def test_dropout_mask(benchmark, variant, shape):
    rows, width = SHAPES[shape]
    offsets = torch.arange(rows) * width
    got = variant(offsets, width)
    if variant is torch_dropout:  # other bits, the same distribution
        assert abs((got != 0).double().mean().item() - (1 - P)) < 0.02
    else:
        assert torch.equal(got, reference(offsets, width))
    benchmark.group = shape
    benchmark.extra_info["elements"] = rows * width
    benchmark(variant, offsets, width)
