"""Calls of all ops but attention's with wrong arguments: an answer or an error by name.

With those of test_fuzz_attention.py they are more than 10,000.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves

from sbrrt_fast._extension import extension, extension_error
from tests.ops.op_checks import RNG, SITE, odd_tensor
from tests.ops.op_references import ALLOCATING, assert_close

assert extension is not None, extension_error
ops = torch.ops.sbrrt
NUMBERS = [0, 1, -1, 3, 0.1, 1.0, -0.5, 2**62, 2**63 - 1, -(2**63), 1e300, math.nan, math.inf]
WORDS = ["ball", "normalize", "inf", "2", "token", "sequence", "", "Ball", "x" * 1000]


def logits_and_delta():
    return [torch.randn(8, 5), torch.randn(8, 5)]


def ascent():
    tensors = torch.randn(2, 12, 16)
    mask, sequence = torch.arange(12) % 3 > 0, torch.arange(12) // 5
    return [*tensors, mask, sequence, 3, 0.1, True, "ball", 0.1, "2", "sequence"]


def update():
    """Two parameters with averages and copies of both."""
    lists = [[torch.rand(4, 5), torch.rand(5)] for _ in range(5)]
    copies = [[x.bfloat16() for x in lists[0]] for _ in range(2)]
    rate, clip, step = torch.tensor([1e-3, 1e-4]), torch.tensor(0.5), torch.tensor(3)
    return [*lists, *copies, rate, [0.1, 0.0], 0.9, 0.999, 1e-8, clip, step, 0.95]


def update_rows():
    """A table of six rows, of which two have a gradient."""
    touched = torch.zeros(6, dtype=torch.bool)
    tables = [torch.rand(6, 5) for _ in range(4)]
    rows, rate = torch.tensor([1, 4]), torch.tensor(1e-3)
    scalars = [rate, 0.1, 0.9, 0.999, 1e-8, torch.tensor(0.5), torch.tensor(3), 0.95]
    return [tables[0], torch.rand(2, 5), rows, touched, *tables[1:], *scalars]


def offsets(rows: int) -> torch.Tensor:
    return torch.arange(rows) * 8


def layernorm_forward():
    x, residual = torch.randn(2, 6, 8)
    return [x, torch.rand(8), residual, *torch.rand(2, 8), 1e-12, 0.1, RNG, SITE, offsets(6)]


def layernorm_saved():
    """What the backward and the tangent read: the forward's arguments and its statistics."""
    x, bias, residual, weight = layernorm_forward()[:4]
    statistics = torch.rand(2, 6)
    return [x, bias, residual, weight, *statistics, 0.1, RNG, SITE, offsets(6)]


def layernorm_tangents():
    return [*torch.randn(2, 6, 8), *layernorm_saved()]


def embed_tables():
    return [torch.randn(9, 8), torch.randn(16, 8), torch.randn(2, 8)]


def embed_forward():
    indices = [torch.randint(9, (6,)), torch.arange(6), torch.zeros(6, dtype=torch.int64)]
    return [*indices, *embed_tables(), *torch.rand(2, 8), 1e-12, 0.1, RNG, SITE, offsets(6)]


def embed_backward():
    *tensors, _, _, p, rng, site, first = embed_forward()
    saved = [torch.rand(6), torch.rand(6)]
    order = torch.stack([index.argsort(stable=True) for index in tensors[:3]])
    return [torch.randn(6, 8), *tensors, *saved, p, rng, site, first, [True] * 5, order]


# schema -> good arguments, calls
OPS: dict[str, tuple[Callable[[], list], int]] = {
    "symmetric_kl_forward": (logits_and_delta, 400),
    "symmetric_kl_backward": (lambda: [torch.ones(8), *logits_and_delta()], 500),
    "symmetric_kl_fisher": (logits_and_delta, 300),
    "smart_ascend": (ascent, 700),
    "smart_noise": (lambda: [torch.arange(5) * 8, 8, RNG, SITE], 400),
    "adamw_ema_": (update, 700),
    "adamw_ema_rows_": (update_rows, 400),
    "gradient_norm": (lambda: [[torch.rand(4, 5), torch.rand(5)]], 300),
    "bias_gelu_forward": (lambda: [torch.randn(6, 8), torch.rand(8)], 200),
    "bias_gelu_backward": (lambda: [*torch.randn(2, 6, 8), torch.rand(8), True], 250),
    "bias_gelu_jvp": (lambda: [*torch.randn(2, 6, 8), torch.rand(8)], 200),
    "bias_gelu_forward_into": (lambda: [torch.randn(6, 8), torch.rand(8), torch.rand(6, 8)], 200),
    "bias_gelu_backward_into": (
        lambda: [*torch.randn(2, 6, 8), torch.rand(8), True, torch.rand(6, 8)],
        250,
    ),
    "mm_into": (lambda: [torch.randn(6, 8), torch.randn(8, 5), torch.rand(6, 5)], 200),
    "dropout_add_layernorm_forward": (layernorm_forward, 400),
    "dropout_add_layernorm_backward": (
        lambda: [torch.randn(6, 8), *layernorm_saved(), True],
        400,
    ),
    "dropout_add_layernorm_jvp": (layernorm_tangents, 400),
    "embed_forward": (embed_forward, 400),
    "embed_backward": (embed_backward, 400),
    "dropout_mask": (lambda: [offsets(5), 8, 0.1, RNG, SITE, torch.float32], 250),
    "philox_bits": (lambda: [offsets(5), 8, RNG, SITE], 200),
}


def spoilt(draw: random.Random, value: object) -> object:
    """Something else in an argument's place; often of the same type."""
    if isinstance(value, list):
        items = [*value]
        change = draw.randrange(4)
        if change == 0:
            return items[:-1]
        if change == 1:
            return items + items[:1]
        position = draw.randrange(len(items))
        items[position] = spoilt(draw, items[position])
        return items
    if isinstance(value, torch.Tensor):
        return like(draw, value) if draw.random() < 0.6 else odd_tensor(draw)
    if isinstance(value, str):
        return draw.choice(WORDS)
    return draw.choice([*NUMBERS, None, "x", True])


def like(draw: random.Random, x: torch.Tensor) -> torch.Tensor:
    """A tensor that differs from x in one respect."""
    choices = [
        lambda: x.to(draw.choice([torch.float64, torch.float16, torch.int32, torch.bfloat16])),
        lambda: x[:-1] if x.dim() else x[None],
        lambda: x[None],
        lambda: x[..., :0] if x.dim() else x,
        lambda: x.to("meta"),
        lambda: x.to_sparse() if x.dim() else x,
        lambda: torch.full_like(x, draw.choice([-1, 0, 100])),
        lambda: x.new_zeros(()).expand(x.shape),
        lambda: x.t() if x.dim() == 2 else x.flip(0) if x.dim() else x,
        lambda: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
    ]
    return draw.choice(choices)()


def answer_of(op: Callable, arguments: list) -> object:
    """What a call returns or raises."""
    try:
        return op(*arguments)
    except Exception as error:
        return error


def is_named(error: Exception, op: str) -> bool:
    """Whether an error is of a kind that users expect, and says whose it is.

    How many flags a schema takes torch checks itself, with a message of its own.
    """
    says_whose = re.search(rf"sbrrt::{op}\b|to a fixed-size array of size", str(error))
    return isinstance(error, (TypeError, ValueError, RuntimeError)) and says_whose is not None


@pytest.mark.parametrize("name", OPS)
def test_wrong_arguments_raise_by_name(name):
    good, num_calls = OPS[name]
    op, draw, num_answers = getattr(ops, name), random.Random(name), 0
    op(*good())
    for _ in range(num_calls):
        arguments = good()
        count = min(len(arguments), draw.choice([1, 1, 2]))
        for position in draw.sample(range(len(arguments)), count):
            arguments[position] = spoilt(draw, arguments[position])
        answer = answer_of(op, arguments)
        is_error = isinstance(answer, Exception)
        assert not is_error or is_named(answer, name), (arguments, answer)
        num_answers += not is_error
        if name in ALLOCATING and not is_error:
            results = answer if isinstance(answer, tuple) else (answer,)
            read = [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]
            assert_close([*results], ALLOCATING[name](*arguments), read)
    assert num_calls / 50 < num_answers < num_calls * 0.9
