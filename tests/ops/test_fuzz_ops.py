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
from tests.ops.cases import OPS
from tests.ops.cases.base import Op
from tests.ops.op_checks import odd_tensor
from tests.ops.op_references import OF_THE_RESULT, REFERENCES, assert_close, condition
from tests.ops.write_samples import schema, written

assert extension is not None, extension_error
ops = torch.ops.sbrrt
NUMBERS = [0, 1, -1, 3, 0.1, 1.0, -0.5, 2**62, 2**63 - 1, -(2**63), 1e300, math.nan, math.inf]
WORDS = ["ball", "normalize", "inf", "2", "token", "sequence", "", "Ball", "x" * 1000]


def good(op: Op, name: str) -> list:
    """Arguments that a writing op takes, with values drawn."""
    values = {key: drawn(key, value) for key, value in op.good().items()}
    return [values[argument.name] for argument in schema(name).arguments]


def drawn(name: str, value: object) -> object:
    if isinstance(value, list):
        return [drawn(name, item) for item in value]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() == 0:
        return value
    is_any_number = value.dim() == 2 and name != "exp_avg_sq"
    return (torch.randn if is_any_number else torch.rand)(value.shape).to(value.dtype)


# Attention's have a file of their own.
CALLS = {name: op for op in OPS.values() for name in op.writing if op.name != "attention"}


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
    """Whether an error is of a kind that users expect, and says whose it is."""
    says_whose = re.search(rf"sbrrt::{op.removesuffix('_into')}(_into)?\b", str(error))
    return isinstance(error, (TypeError, ValueError, RuntimeError)) and says_whose is not None


WITHOUT_A_PUBLIC_OP = {
    "column_sums_into": lambda: [torch.randn(3, 6, 8), torch.randn(6), torch.rand(3, 8)],
    "mm_into": lambda: [torch.randn(6, 8), torch.randn(8, 5), torch.rand(6, 5)],
}


@pytest.mark.parametrize("name", [*CALLS, *WITHOUT_A_PUBLIC_OP])
def test_wrong_arguments_raise_by_name(name):
    draw, num_answers = random.Random(name), 0
    num_calls = 100 + 25 * len(schema(name).arguments)
    for i in range(num_calls):
        others = WITHOUT_A_PUBLIC_OP
        arguments = others[name]() if name in others else good(CALLS[name], name)
        count = min(len(arguments), draw.choice([1, 1, 2])) if i else 0
        for position in draw.sample(range(len(arguments)), count):
            arguments[position] = spoilt(draw, arguments[position])
        answer = answer_of(getattr(ops, name), arguments)
        is_error = isinstance(answer, Exception)
        assert not is_error or (i and is_named(answer, name)), (arguments, answer)
        num_answers += not is_error
        if not is_error and not name.startswith("adamw"):
            check_results(name, arguments)
    assert num_calls / 50 < num_answers < num_calls * 0.9


def check_results(name: str, arguments: list) -> None:
    """An op that answers has left the reference's values."""
    names = [argument.name for argument in schema(name).arguments]
    values = dict(zip(names, arguments, strict=True))
    if any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves(values)):
        return
    read = [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]
    results = [values[result] for result in written(name) if not result.startswith("low")]
    reads = [x for n, x in values.items() if n not in written(name) or name in OF_THE_RESULT]
    exact = REFERENCES[name](*reads)
    assert_close(results, exact, read, condition(name, exact))
