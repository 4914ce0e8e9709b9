"""The losses of a batch's tasks as host functions take them and as kernels read them.

``losses`` has FIELDS numbers per task: kind, num_examples and num_outputs; ``numbers`` two, weight
and label smoothing. ``csrc/common/objective_op.h`` checks the same.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .checks import check_tensor, check_written
from .tensor_table import device_table

FIELDS, NUMBERS = 3, 2
BINARY, SQUARED = tl.constexpr(1), tl.constexpr(2)
NUM_KINDS, MOST = 3, 2**31 - 1
# Of a row of the table on the device: a task's numbers, then the first of its outputs and labels.
TABLE_FIELDS = tl.constexpr(5)


class Losses(NamedTuple):
    """Attributes: fields, a tuple per task."""

    fields: tuple[tuple[int, ...], ...]

    @property
    def num_outputs(self) -> int:
        return sum(count * outputs for _, count, outputs in self.fields)

    @property
    def num_examples(self) -> int:
        return sum(count for _, count, _ in self.fields)

    @property
    def num_classes(self) -> int:
        """The most of any task."""
        return max(num_classes(kind, outputs) for kind, _, outputs in self.fields)


def num_classes(kind: int, outputs: int) -> int:
    return 2 if kind == 1 else outputs


def read_losses(op: str, losses: Sequence[int]) -> Losses:
    """The tasks of the flat list.

    Raises:
        ValueError: a number is out of range.
    """
    if not losses or len(losses) % FIELDS:
        count = len(losses)
        raise ValueError(f"{op}: losses must have {FIELDS} numbers for each task, got {count}")
    rows = tuple(tuple(losses[i : i + FIELDS]) for i in range(0, len(losses), FIELDS))
    for kind, count, outputs in rows:
        in_range = 0 <= kind < NUM_KINDS and 1 <= count <= MOST and 1 <= outputs <= MOST
        if not in_range or (kind != 0 and outputs != 1):
            raise ValueError(
                f"{op}: losses must be kind, num_examples and num_outputs each, all in range, got "
                f"{[kind, count, outputs]}"
            )
    return Losses(rows)


def check_numbers(
    op: str, losses: Losses, numbers: Sequence[float], common: tuple[float, ...]
) -> None:
    """Two finite numbers per task, and those of all tasks."""
    if len(numbers) != NUMBERS * len(losses.fields):
        count = len(losses.fields)
        raise ValueError(
            f"{op}: numbers must have {NUMBERS} for each of {count} tasks, got {len(numbers)}"
        )
    if not all(math.isfinite(x) for x in (*numbers, *common)):
        raise ValueError(f"{op}: numbers, weights and smart_factor must be finite")
    for smoothing in numbers[1::NUMBERS]:
        if not 0 <= smoothing < 1:
            raise ValueError(
                f"{op}: numbers have a label smoothing, which must be in [0, 1), got {smoothing}"
            )


def check_lists(
    op: str,
    losses: Losses,
    device: torch.device,
    class_weights: Sequence[Tensor],
    label_means: Sequence[Tensor],
    label_scales: Sequence[Tensor],
) -> None:
    """An entry per task, without elements where there is none."""
    for name, tensors, dtype in (
        ("class_weights", class_weights, torch.float32),
        ("label_means", label_means, torch.float64),
        ("label_scales", label_scales, torch.float64),
    ):
        if len(tensors) != len(losses.fields):
            count = len(losses.fields)
            raise ValueError(
                f"{op}: {name} must have one entry for each of {count} tasks, got {len(tensors)}"
            )
        for i, (x, (kind, _, outputs)) in enumerate(zip(tensors, losses.fields, strict=True)):
            shape = (num_classes(kind, outputs),) if name == "class_weights" else ()
            is_meant = (kind == 2) != (name == "class_weights")
            shape = shape if is_meant and x.numel() else (0,)
            check_tensor(op, f"{name}[{i}]", x, dtype, shape, device)
    for i, (mean, scale) in enumerate(zip(label_means, label_scales, strict=True)):
        if mean.numel() != scale.numel():
            raise ValueError(f"{op}: label_means[{i}] and label_scales[{i}] come together")


def check_vector(
    op: str,
    name: str,
    x: Tensor | None,
    size: int,
    device: torch.device,
    is_written: bool = False,
) -> None:
    """A float32 vector of so many elements; None passes."""
    if x is not None:
        check = check_written if is_written else check_tensor
        check(op, name, x, torch.float32, (size,), device)


kept_table = functools.cache(device_table)  # a captured graph reads the tables


@functools.cache
def loss_table(losses: Losses, device: torch.device) -> Tensor:
    """int64 [num_tasks, TABLE_FIELDS] on the device."""
    rows, first_output, first_example = [], 0, 0
    for kind, count, outputs in losses.fields:
        rows.append((kind, count, outputs, first_output, first_example))
        first_output += count * outputs
        first_example += count
    return device_table(tuple(itertools.chain(*rows)), torch.int64, device)
