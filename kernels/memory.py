"""Whether two tensors have memory in common, exactly and for any strides; as csrc/common/memory.h.

The parts of a fused [num_tokens, 3 hidden] lie between each other and share no byte.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Runs(NamedTuple):
    """A tensor's memory as runs of bytes without a gap.

    Attributes:
        begin: address of the first. size: bytes of each.
        steps: (bytes, count), ascending; the others begin at sums of multiples.
    """

    begin: int
    size: int
    steps: list[tuple[int, int]]

    def starts(self) -> list[int]:
        starts = [self.begin]
        for stride, count in self.steps:
            starts = [start + k * stride for k in range(count) for start in starts]
        return sorted(starts)


def extent_of(x: Tensor) -> tuple[int, int]:
    """Addresses of its first element and behind its last, gaps included.

    (0, 0) for a tensor without elements, or without memory (``meta``).
    """
    if x.is_meta or not x.numel():
        return 0, 0
    begin, last = x.data_ptr(), x.numel() - 1
    if not x.is_contiguous():
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.itemsize


def have_common_memory(a: Tensor, b: Tensor) -> bool:
    """For tensors with elements."""
    runs_a, runs_b = _runs_of(a), _runs_of(b)
    if _are_columns_apart(runs_a, runs_b):
        return False
    starts_a, starts_b, i, j = runs_a.starts(), runs_b.starts(), 0, 0
    while i < len(starts_a) and j < len(starts_b):
        end_a, end_b = starts_a[i] + runs_a.size, starts_b[j] + runs_b.size
        if starts_a[i] < end_b and starts_b[j] < end_a:
            return True
        i, j = (i + 1, j) if end_a <= end_b else (i, j + 1)
    return False


def is_same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether element i of one is element i of the other, for all i."""
    if a.dtype != b.dtype or a.shape != b.shape or a.data_ptr() != b.data_ptr():
        return False
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or stride == other for size, stride, other in strides)


def _runs_of(x: Tensor) -> Runs:
    size, steps = x.itemsize, []
    dimensions = sorted(
        (stride * x.itemsize, count)
        for stride, count in zip(x.stride(), x.shape, strict=True)
        if count > 1 and stride
    )
    for stride, count in dimensions:
        if not steps and stride == size:
            size *= count
        else:
            steps.append((stride, count))
    return Runs(x.data_ptr(), size, steps)


def _are_columns_apart(a: Runs, b: Runs) -> bool:
    """Rows that are equally far apart, in columns of their own; spares the lists of starts."""
    if len(a.steps) != 1 or len(b.steps) != 1 or a.steps[0][0] != b.steps[0][0]:
        return False
    stride = a.steps[0][0]
    column = (b.begin - a.begin) % stride
    return column >= a.size and column + b.size <= stride
