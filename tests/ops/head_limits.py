"""Calls of the ops of heads and objectives over dtypes and sizes, some of which kernels refuse."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sbrrt_fast.ops.objective import LossSpec, ObjectiveTable
from sbrrt_fast.ops.task_heads import HeadSpec, HeadTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COUNTS = (1, 2, 64, 65)  # at most 64 on CUDA
Call = tuple[str, tuple, dict]


def _heads(device: str, count: int, dtype: torch.dtype) -> tuple[HeadTable, torch.Tensor, tuple]:
    """(table, pooled, (factors, weights)) of linear heads of one example each."""
    specs = [HeadSpec("linear", 1, i, 1, 6 * i, 6 * i + 5) for i in range(count)]
    pooled = torch.ones(count, 5, dtype=dtype, device=device)
    weights = torch.ones(6 * count, dtype=dtype, device=device)
    return HeadTable(specs, 5, device), pooled, (None, weights)


def _outputs(pooled: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(pooled), dtype=pooled.dtype, device=pooled.device)


def _grid() -> Iterator[tuple[int, torch.dtype]]:
    yield from ((count, torch.float32) for count in COUNTS)
    yield from ((2, dtype) for dtype in DTYPES)


def heads_forward(device: str) -> Iterator[Call]:
    for count, dtype in _grid():
        table, pooled, others = _heads(device, count, dtype)
        yield f"{count} heads, {dtype}", (table, pooled, *others), {}


def heads_jvp(device: str) -> Iterator[Call]:
    for what, arguments, _ in heads_forward(device):
        yield what, (*arguments, arguments[1]), {}


def heads_vjp(device: str) -> Iterator[Call]:
    for what, arguments, _ in heads_forward(device):
        yield what, (*arguments, _outputs(arguments[1])), {}


def heads_weight_gradients(device: str) -> Iterator[Call]:
    for what, (table, pooled, _, weights), _ in heads_forward(device):
        for passes in (1, 2, 3):
            lists = [pooled] * passes, [None] * passes, [_outputs(pooled)] * passes
            yield f"{what}, {passes} passes", (table, *lists, weights), {}


def smoothness(device: str) -> Iterator[Call]:
    sizes = [(1, 2), (1, 1), (1, 1024), (1, 1025)]
    grid = [(*size, torch.float32) for size in sizes] + [(2, 3, dtype) for dtype in DTYPES]
    for count, classes, dtype in grid:
        specs = [LossSpec("cross_entropy", 1, classes, 1.0)] * count
        table = ObjectiveTable(specs, 1.0, 1.0, device)
        x = torch.ones(count * classes, dtype=dtype, device=device)
        yield f"{count} tasks, {classes} classes, {dtype}", (table, x, x), {}


def objective(device: str) -> Iterator[Call]:
    for what, (table, x, _), _ in smoothness(device):
        labels = torch.zeros(table.num_examples, device=device)
        yield what, (table, x, labels, x, x, 1.0, None), {}


CALLS = {
    "heads_forward": heads_forward,
    "heads_jvp": heads_jvp,
    "heads_vjp": heads_vjp,
    "heads_weight_gradients": heads_weight_gradients,
    "objective": objective,
    "smoothness_cotangents": smoothness,
    "smoothness_values": smoothness,
}
