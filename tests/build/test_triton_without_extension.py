"""Derivatives of the Triton ops where the extension is not there."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast import _extension
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.embed import embed
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from tests.ops.triton_only import DEVICE

ROWS, WIDTH, EPS = 5, 32, 1e-6


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).requires_grad_()


def places() -> tuple:
    """Dropout's arguments: p, rng, site, offsets."""
    rng, offsets = torch.tensor([3, 1]), torch.arange(ROWS) * WIDTH
    return 0.1, rng.to(DEVICE), 2, offsets.to(DEVICE)


def gelu() -> tuple:
    inputs = [random(ROWS, WIDTH), random(WIDTH)]
    return inputs, (1,), lambda: bias_gelu(*inputs, backend="triton")


def layernorm() -> tuple:
    inputs = [random(ROWS, WIDTH), random(WIDTH), random(ROWS, WIDTH), random(WIDTH), random(WIDTH)]
    dropout = places()
    return (
        inputs,
        (1, 3, 4),
        lambda: dropout_add_layernorm(*inputs, EPS, *dropout, backend="triton"),
    )


def embedding() -> tuple:
    inputs = [random(*shape) for shape in ((11, WIDTH), (7, WIDTH), (2, WIDTH), (WIDTH,), (WIDTH,))]
    ids, positions, types = (torch.randint(n, (ROWS,), device=DEVICE) for n in (11, 7, 2))
    dropout = places()
    return (
        inputs,
        (0, 1, 2, 3, 4),
        lambda: embed(ids, positions, types, *inputs, EPS, *dropout, backend="triton"),
    )


def gradients(inputs, run) -> list:
    y = run()
    return torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)


@pytest.mark.parametrize("make", [gelu, layernorm, embedding])
def test_derivatives_do_not_need_it(make, monkeypatch):
    inputs, weights, run = make()
    expected = gradients(inputs, run)
    monkeypatch.setattr(_extension, "extension", None)
    for found, value in zip(gradients(inputs, run), expected, strict=True):
        assert torch.equal(found, value)
    with input_gradients_only():
        left_out = gradients(inputs, run)
    for i, (found, value) in enumerate(zip(left_out, expected, strict=True)):
        assert found is None if i in weights else torch.equal(found, value)
    assert all(g is not None for g in gradients(inputs, run))  # it ends with the block
