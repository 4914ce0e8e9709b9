"""The heads of a batch's tasks as host functions take them and as kernels read them.

``heads`` has FIELDS numbers per head: kind, num_examples, first_sequence, num_outputs,
weight_offset and bias_offset; ``csrc/common/task_heads_op.h`` checks the same.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import strided
from .tensor_table import device_table

FIELDS = 6
COSINE = tl.constexpr(3)
NUM_KINDS, MOST = 4, 2**31 - 1
# Of a row of the table on the device: a head's numbers, then the first of its outputs and of its
# rows of weights, and the pooled vectors' worth of features that a row of weights has.
TABLE_FIELDS = tl.constexpr(9)


class Heads(NamedTuple):
    """Attributes: fields, a tuple per head; hidden, the features of a pooled vector."""

    fields: tuple[tuple[int, ...], ...]
    hidden: int

    @property
    def num_outputs(self) -> int:
        return sum(f[1] * f[3] for f in self.fields)

    @property
    def num_weight_rows(self) -> int:
        return sum(f[3] for f in self.fields if f[0] != 3)

    @property
    def num_features(self) -> int:
        """The most of any head."""
        return self.hidden * max((num_vectors(f[0]) for f in self.fields), default=0)

    @property
    def tile(self) -> int:
        """Heads, up to a power of 2."""
        return triton.next_power_of_2(len(self.fields))


def num_vectors(kind: int) -> int:
    return 0 if kind == 3 else kind + 1


def read_heads(op: str, heads: Sequence[int], hidden: int) -> Heads:
    """The heads of the flat list.

    Raises:
        ValueError: a number is out of range.
    """
    if not heads or len(heads) % FIELDS:
        raise ValueError(f"{op}: heads must have {FIELDS} numbers for each head, got {len(heads)}")
    rows = tuple(tuple(heads[i : i + FIELDS]) for i in range(0, len(heads), FIELDS))
    for kind, count, sequence, outputs, weight, bias in rows:
        numbers = 1 <= count <= MOST and 0 <= sequence <= MOST and 1 <= outputs <= MOST
        has_weights = 0 <= weight <= 2**62 and 0 <= bias <= 2**62
        is_whole = outputs == 1 if kind == 3 else has_weights
        if not (0 <= kind < NUM_KINDS and numbers and is_whole):
            row = [kind, count, sequence, outputs, weight, bias]
            raise ValueError(
                f"{op}: heads must be kind, num_examples, first_sequence, num_outputs, "
                f"weight_offset and bias_offset each, all in range, got {row}"
            )
    return Heads(rows, hidden)


def check_scales(op: str, scales: Sequence[float], heads: Heads) -> None:
    """One finite float32 per head."""
    if len(scales) != len(heads.fields):
        count = len(heads.fields)
        raise ValueError(
            f"{op}: scales must have one number for each of {count} heads, got {len(scales)}"
        )
    if not all(math.isfinite(x) and abs(x) < 3.4e38 for x in scales):
        raise ValueError(f"{op}: scales must be finite, got {list(scales)}")


def check_places(op: str, heads: Heads, num_sequences: int, name: str, num_weights: int) -> None:
    """No two heads share sequences or weights, and all of them are there.

    Raises:
        ValueError: otherwise.
    """
    sequences = [range(f[2], f[2] + f[1] * (1 if f[0] == 0 else 2)) for f in heads.fields]
    weights = [r for f in heads.fields if f[0] != 3 for r in _weight_ranges(f, heads.hidden)]
    _check_ranges(op, "sequences", sequences, num_sequences)
    _check_ranges(op, name, weights, num_weights)


def _weight_ranges(fields: tuple[int, ...], hidden: int) -> list[range]:
    kind, _, _, outputs, weight, bias = fields
    size = outputs * num_vectors(kind) * hidden
    return [range(weight, weight + size), range(bias, bias + outputs)]


def _check_ranges(op: str, what: str, ranges: list[range], limit: int) -> None:
    end = 0
    for one in sorted(ranges, key=lambda r: (r.start, r.stop)):
        if one.start < end:
            raise ValueError(f"{op}: two of the heads share {what} from {one.start} on")
        end = one.stop
    if end > limit:
        raise ValueError(f"{op}: the heads have {what} up to {end}, above the {limit} there are")


@functools.cache  # a captured graph reads the tables
def head_tables(heads: Heads, scales: tuple[float, ...], device: torch.device) -> tuple:
    """(int64 [num_heads, TABLE_FIELDS], float64 [num_heads] scales) on the device."""
    sizes = [f[1] * f[3] for f in heads.fields]
    rows = [f[3] if f[0] != 3 else 0 for f in heads.fields]
    starts = zip(_starts(sizes), _starts(rows), strict=True)
    values = [
        (*fields, *first, num_vectors(fields[0]))
        for fields, first in zip(heads.fields, starts, strict=True)
    ]
    table = device_table(tuple(itertools.chain(*values)), torch.int64, device)
    return table, device_table(scales, torch.float64, device)


def _starts(sizes: list[int]) -> list[int]:
    return list(itertools.accumulate(sizes, initial=0))[:-1]


@triton.jit
def head_of(p_heads, i_field, index, num_heads, HEADS: tl.constexpr):
    """The last head whose ``i_field`` is at most ``index``: it has that output or row."""
    o = tl.arange(0, HEADS)
    first = tl.load(p_heads + o * TABLE_FIELDS + i_field, mask=o < num_heads, other=2**62)
    return tl.sum((first <= index).to(tl.int32), axis=0) - 1


@triton.jit
def head_of_sequence(p_heads, i_row, num_heads, HEADS: tl.constexpr):
    """(The head that has a sequence, whether there is one.)"""
    o = tl.arange(0, HEADS)
    m = o < num_heads
    kind = tl.load(p_heads + o * TABLE_FIELDS, mask=m, other=0)
    count = tl.load(p_heads + o * TABLE_FIELDS + 1, mask=m, other=0)
    first = tl.load(p_heads + o * TABLE_FIELDS + 2, mask=m, other=0)
    count = tl.where(kind == 0, count, 2 * count)
    has_it = m & (i_row >= first) & (i_row < first + count)
    return tl.sum(tl.where(has_it, o, 0), axis=0), tl.sum(has_it.to(tl.int32), axis=0) > 0


def pooled_arguments(pooled: Tensor | None, factors: Tensor | None) -> tuple:
    """Pooled vectors and factors with their strides, as kernels take them."""
    return (*strided(pooled), *strided(factors))
