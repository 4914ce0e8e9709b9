"""Packed attention on random problems: right where they are valid, a named error where not."""

from __future__ import annotations

import random
from itertools import accumulate

import torch

from sbrrt_fast.ops.attention import packed_attention_reference
from tests.ops.op_checks import BF16, F32, F64, laid_out

ops = torch.ops.sbrrt
NAMES = ["query", "key", "value", "cu_seqlens", "max_length", "num_heads"]
NAMES += ["p", "rng", "site", "rows", "max_positions"]
SAVED = {
    "forward": [],
    "backward": ["grad", "out", "logsumexp"],
    "jvp": ["query_tangent", "key_tangent", "value_tangent", "logsumexp"],
}
ORDER = {
    "forward": NAMES,
    "backward": ["grad", *NAMES[:3], "out", "logsumexp", *NAMES[3:]],
    "jvp": [*NAMES[:3], *SAVED["jvp"], *NAMES[3:]],
}


NUM_RESULTS = {"forward": 1, "backward": 3, "jvp": 1}


def random_problem(draw: random.Random) -> dict:
    """Valid arguments of all three ops, by name."""
    lengths = [draw.choice([0, 1, 2, 5, 16, 17, 23]) for _ in range(draw.randrange(5))]
    num_heads, head_dim = draw.randint(1, 3), draw.choice([32, 64])
    dtype, size = draw.choice([F32, BF16]), (sum(lengths), num_heads * head_dim)
    layouts = ["dense", "strided", "transposed"]
    tensors = [*NAMES[:3], "grad", *SAVED["jvp"][:3]]
    a = {name: laid_out(torch.randn(size).to(dtype), draw.choice(layouts)) for name in tensors}
    max_length = max(lengths, default=0) + draw.choice([0, 0, 1, 9])
    a |= {
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "max_length": max_length,
        "num_heads": num_heads,
        "p": draw.choice([0.0, 1e-9, 0.1, 0.5, 0.999]),
        "rng": torch.tensor([draw.randrange(-(2**63), 2**63), draw.randrange(2**32)]),
        "site": draw.randrange(2**32),
        "rows": torch.tensor([draw.choice([0, 3, 2**31, 2**40]) for _ in lengths]).long(),
        "max_positions": max_length + draw.choice([0, 1, 2, 3, 100]),
    }
    a |= {"out": torch.empty(size, dtype=dtype), "logsumexp": torch.empty(size[0], num_heads)}
    ops.attention_forward_into(*(a[name] for name in NAMES), a["out"], a["logsumexp"])
    return a


def call(op: str, arguments: dict) -> list[torch.Tensor]:
    """The results."""
    query = arguments["query"]
    results = [query.new_empty(query.shape) for _ in range(NUM_RESULTS[op])]
    if op == "forward" and isinstance(arguments["num_heads"], int):
        size = len(query) if query.dim() else 0, min(max(arguments["num_heads"], 0), 9)
        results.append(torch.empty(size, device=query.device))
    read = [arguments[name] for name in ORDER[op]]
    getattr(ops, f"attention_{op}_into")(*read, *results)
    return results


def check_answers(a: dict) -> None:
    """The values are the reference's, and tangent and gradient are adjoint."""
    inputs = [a[name].double() for name in NAMES[:3]]
    exact = packed_attention_reference(*inputs, *(a[name] for name in NAMES[3:]))
    eps = torch.finfo(a["query"].dtype).eps
    size = 1 + exact.abs().max().item() if exact.numel() else 1.0
    torch.testing.assert_close(a["out"].double(), exact, rtol=0, atol=4 * eps * size)
    grads, (tangent,) = call("backward", a), call("jvp", a)
    pulled = sum(
        (x.double() * a[name]).sum() for x, name in zip(grads, SAVED["jvp"][:3], strict=True)
    )
    pushed = (tangent.double() * a["grad"]).sum()
    scale = (tangent.double().norm() + size) * (a["grad"].double().norm() + 1)
    assert abs(pulled - pushed) <= 4 * eps * scale


def spoiled_tensor(draw: random.Random, x: torch.Tensor) -> torch.Tensor:
    """A tensor that is neither of x's dtype, shape, layout and device."""
    choices = [
        lambda: x.to(F64 if x.is_floating_point() else torch.int16),
        lambda: x.to(torch.complex64),
        lambda: torch.cat([x, x[:1] if len(x) else x.new_zeros(1, *x.shape[1:])]),
        lambda: x[None],
        lambda: x.flatten()[0:0].sum(),
        lambda: x.new_zeros(*x.shape[:-1], x.shape[-1] + 1),
        lambda: torch.zeros_like(x, device="meta"),
        lambda: x.new_zeros(x.shape).to_sparse(),
    ]
    return draw.choice(choices)()


def spoiled_starts(draw: random.Random, a: dict) -> torch.Tensor:
    """cu_seqlens of the right dtype and shape that do not describe the batch."""
    starts = a["cu_seqlens"].clone()
    last, i = len(starts) - 1, draw.randrange(len(starts))
    if last == 0:
        starts[0] = draw.choice([-1, 1, 2**31 - 1, -(2**31)])
    elif i in (0, last):  # begins elsewhere, wrong total
        starts[i] += draw.choice([-1, 1, 7, 2**20])
    else:  # negative, falling, too long
        starts[i] = draw.choice([-1, -(2**31), starts[-1] + 1, 2**31 - 1, starts[i - 1] - 1])
    return starts


NUMBERS = {
    "max_length": [-1, -(2**63), 513, 2**40],
    "num_heads": [0, -1, 7, 2**16, 2**62],
    "p": [-0.1, 1.0, 1e300, float("nan"), float("inf"), -float("inf")],
    "site": [-1, 2**32, 2**62],
    "max_positions": [-1, -(2**63), 2**31, 2**62],
}


def spoil(draw: random.Random, op: str, a: dict) -> str:
    """Makes one argument of ``op`` wrong and returns its name."""
    name = draw.choice(ORDER[op])
    if name in NUMBERS:
        a[name] = draw.choice(NUMBERS[name])
    elif name == "cu_seqlens" and draw.random() < 0.7:
        a[name] = spoiled_starts(draw, a)
    elif name == "rng" and draw.random() < 0.5:
        a[name] = torch.tensor([1, draw.choice([-1, 2**32, 2**63 - 1])])
    elif name == "rows" and len(a[name]) and draw.random() < 0.6:
        a[name] = a[name].clone()
        a[name][draw.randrange(len(a[name]))] = draw.choice([-1, -(2**63), 2**63 - 1])
    else:
        a[name] = spoiled_tensor(draw, a[name])
    return name


def is_named(message: str, op: str, argument: str) -> bool:
    """Of two devices either may be called the wrong one."""
    names = argument in message or " must be on meta, got " in message
    return message.startswith(f"sbrrt::attention_{op}: ") and names


def test_valid_problems_are_answered():
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(400):  # three calls each
        check_answers(random_problem(draw))


def test_a_wrong_argument_is_named():
    draw, wrong = random.Random(1), []
    torch.manual_seed(1)
    for _ in range(2400):
        op, a = draw.choice(list(ORDER)), random_problem(draw)
        name = spoil(draw, op, a)
        try:
            call(op, a)
            wrong.append((op, name, a[name], "answered"))
        except NotImplementedError as error:  # torch itself has no sparse kernel to call
            is_torch_s = a[name].layout == torch.sparse_coo and f"attention_{op}" in str(error)
            if not is_torch_s:
                wrong.append((op, name, a[name], str(error)))
        except (TypeError, ValueError) as error:
            if not is_named(str(error), op, name):
                wrong.append((op, name, a[name], str(error)))
    assert not wrong, wrong[:3]
