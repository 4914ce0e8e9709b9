"""Calls of every op over a grid of shapes and dtypes, some of which its kernels refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from sbrrt_fast.ops._backend.dispatch import Implementation
from sbrrt_fast.ops.registry import OPS
from tests.ops import head_limits

F16, F32, F64, BF16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
DTYPES = (F32, BF16, F16, F64)
WIDTHS = (1, 3, 30, 33, 48, 2048, 2049, 8192, 8193)
BY_NAME = {op.name: op for op in OPS}
Call = tuple[str, tuple, dict]  # what it is, arguments


def implementation(op: str, backend: str) -> Implementation:
    return next(i for i in BY_NAME[op].implementations if i.backend == backend)


def refusal(op: str, backend: str, args: tuple, kwargs: dict) -> str | None:
    """What an implementation raises that is called without being asked, or None."""
    try:
        implementation(op, backend).run(*args, **kwargs)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return None


def _int(*values: int, device: str, dtype=torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def _dropout(device: str, rows: int) -> tuple:
    return 0.1, _int(3, 4, device=device), 5, torch.arange(rows, device=device) * 8192


def attention(device: str) -> Iterator[Call]:
    def call(head_dim, heads, longest, dtypes, positions, lengths=(3, 2)) -> Call:
        query, key, value = (
            torch.ones(sum(lengths), heads * head_dim, dtype=d, device=device) for d in dtypes
        )
        starts = _int(0, *itertools.accumulate(lengths), device=device, dtype=torch.int32)
        rows = torch.arange(len(lengths), device=device)
        args = query, key, value, starts, longest, heads, *_dropout(device, 1)[:3], rows, positions
        what = f"head_dim {head_dim}, {heads} heads, {longest} of {positions}, {dtypes}"
        return what, args, {}

    for head_dim, longest in itertools.product((1, 16, 26, 32, 48, 64, 128), (3, 512, 513, 1024)):
        yield call(head_dim, 2, longest, (F32,) * 3, 1024)
    for dtype in DTYPES:
        yield call(32, 3, 8, (dtype,) * 3, 512)
    for dtypes in ((F32, BF16, BF16), (BF16, BF16, F32)):
        yield call(64, 1, 8, dtypes, 512)
    yield call(32, 2**16 - 1, 8, (F32,) * 3, 512, ())
    yield call(32, 2**16, 8, (F32,) * 3, 512, ())
    yield call(32, 1, 8, (F32,) * 3, 2**31 - 1)
    yield call(32, 1, 8, (F32,) * 3, 2**31)


def _widths_and_dtypes(call: Callable[..., Call]) -> Iterator[Call]:
    """Of (width, two dtypes of matrices, dtype of vectors)."""
    for width in WIDTHS:
        yield call(width, F32, F32, F32)
    for dtypes in itertools.product(DTYPES, DTYPES):
        yield call(33, *dtypes, F32)
    for vector in DTYPES:
        yield call(30, F32, F32, vector)


def layernorm(device: str) -> Iterator[Call]:
    def call(width, x, residual, vector) -> Call:
        tensors = [torch.ones(2, width, dtype=d, device=device) for d in (x, residual)]
        vectors = [torch.ones(width, dtype=vector, device=device) for _ in range(3)]
        args = tensors[0], vectors[0], tensors[1], *vectors[1:], 1e-12, *_dropout(device, 2)
        return f"width {width}, {x} and {residual}, {vector}", args, {}

    yield from _widths_and_dtypes(call)


def embed(device: str) -> Iterator[Call]:
    def call(width, word, position, vector) -> Call:
        tables = [torch.ones(4, width, dtype=d, device=device) for d in (word, position, position)]
        vectors = [torch.ones(width, dtype=vector, device=device) for _ in range(2)]
        tokens = [torch.arange(2, device=device)] * 3
        args = *tokens, *tables, *vectors, 1e-12, *_dropout(device, 2)
        return f"width {width}, {word} and {position}, {vector}", args, {}

    yield from _widths_and_dtypes(call)


def gelu(device: str) -> Iterator[Call]:
    pairs = [(width, F32, F32) for width in WIDTHS]
    for width, x, bias in [*pairs, *((33, *d) for d in itertools.product(DTYPES, DTYPES))]:
        tensors = torch.ones(2, width, dtype=x, device=device), torch.ones(width, device=device)
        yield f"width {width}, {x}, {bias}", (tensors[0], tensors[1].to(bias)), {}


def pairs_of_logits(device: str) -> Iterator[Call]:
    shapes = [(classes, F32, F32) for classes in (1, 2, 5, 129, 4096, 4097)]
    for classes, a, b in [*shapes, *((3, *d) for d in itertools.product(DTYPES, DTYPES))]:
        logits, other = (torch.ones(2, classes, dtype=d, device=device) for d in (a, b))
        yield f"{classes} classes, {a} and {b}", (logits, other), {}


def ascend(device: str) -> Iterator[Call]:
    options = {"step_size": 1.0, "normalize_gradient": True, "projection": "normalize"}
    options |= {"radius": 0.1, "norm": "2", "level": "token"}
    pairs = [(width, F32, F32) for width in WIDTHS]
    for width, a, b in [*pairs, *((33, *d) for d in itertools.product(DTYPES, DTYPES))]:
        delta, gradient = (torch.ones(2, width, dtype=d, device=device) for d in (a, b))
        mask, sequence = (torch.ones(2, dtype=t, device=device) for t in (torch.bool, torch.int64))
        yield f"width {width}, {a} and {b}", (delta, gradient, mask, sequence - 1, 1), options


def adamw(device: str) -> Iterator[Call]:
    for param, first, second in itertools.product(DTYPES, DTYPES, DTYPES):
        params, m, v = (
            [torch.ones(3, dtype=param, device=device) for _ in range(2)] for _ in range(3)
        )
        grads = [torch.ones(3, dtype=d, device=device) for d in (first, second)]
        lists = params, grads, m, v, [], [], []
        yield f"{param}, gradients {first}, {second}", (*lists, *_numbers(device, [0.0] * 2)), {}


def _numbers(device: str, decay) -> tuple:
    one = torch.ones((), device=device)
    return 1e-3 * one, decay, 0.9, 0.999, 1e-8, one, one, 1.0


def adamw_rows(device: str) -> Iterator[Call]:
    for param, grad in itertools.product(DTYPES, DTYPES):
        table, m, v = (torch.ones(4, 3, dtype=param, device=device) for _ in range(3))
        rows, touched = _int(1, 3, device=device), torch.zeros(4, dtype=torch.bool, device=device)
        grads = torch.ones(2, 3, dtype=grad, device=device)
        state = table, grads, rows, touched, m, v, table.new_empty(0)
        yield f"{param}, gradient {grad}", (*state, *_numbers(device, 0.0)), {}


def norms(device: str) -> Iterator[Call]:
    for a, b in itertools.product(DTYPES, DTYPES):
        yield f"{a}, {b}", ([torch.ones(3, dtype=d, device=device) for d in (a, b)], 1.0), {}


CALLS: dict[str, Callable[[str], Iterator[Call]]] = {
    "attention": attention,
    "dropout_add_layernorm": layernorm,
    "embed": embed,
    "bias_gelu": gelu,
    "symmetric_kl": pairs_of_logits,
    "symmetric_kl_fisher": pairs_of_logits,
    "smart_ascend": ascend,
    "adamw_ema_": adamw,
    "adamw_ema_rows_": adamw_rows,
    "gradient_norm": norms,
    **head_limits.CALLS,
}
