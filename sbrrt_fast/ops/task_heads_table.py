"""Which heads a batch has, and where their sequences, weights and outputs are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_VECTORS = {"linear": 1, "concat": 2, "concat_difference": 3, "cosine": 0}
"""Pooled vectors' worth of features that a kind's weights have."""
KINDS = tuple(NUM_VECTORS)
COSINE_EPS = 1e-6  # lengths below this are taken as this


@dataclass(frozen=True)
class HeadSpec:
    """One task's head and its examples in a batch.

    Attributes:
        kind: ``linear`` (of one sequence), ``concat``, ``concat_difference`` or ``cosine`` (of a
            pair).
        num_examples: at least 1.
        first_sequence: row of its first sequence; pairs are rows 2i and 2i + 1 from there.
        num_outputs: of an example: the classes, else 1.
        weight_offset: of W [num_outputs, num_features] in the flat weights, in elements; -1 for
            ``cosine``.
        bias_offset: of b [num_outputs]; -1 for ``cosine``.
        scale: of ``cosine``.
    """

    kind: str
    num_examples: int
    first_sequence: int
    num_outputs: int
    weight_offset: int
    bias_offset: int
    scale: float = 1.0

    @property
    def sequences_per_example(self) -> int:
        return 1 if self.kind == "linear" else 2

    @property
    def rows(self) -> range:
        """Its sequences' rows."""
        stop = self.first_sequence + self.num_examples * self.sequences_per_example
        return range(self.first_sequence, stop)

    @property
    def size(self) -> int:
        """Number of its outputs."""
        return self.num_examples * self.num_outputs

    def weight_ranges(self, hidden_size: int) -> list[range]:
        """Where W and b are in the flat weights."""
        if self.kind == "cosine":
            return []
        num_features = NUM_VECTORS[self.kind] * hidden_size
        return [
            range(self.weight_offset, self.weight_offset + self.num_outputs * num_features),
            range(self.bias_offset, self.bias_offset + self.num_outputs),
        ]


class HeadTable:
    """The heads of a group of tasks over one batch.

    Args:
        specs: one per task, at least one; no two share sequences or weights.
        hidden_size: width of the pooled vectors.
        device: of the tensors.

    Attributes:
        num_sequences: the highest row in use, plus 1.
        num_outputs: of all tasks together, the length of the flat outputs.
        num_weights: the highest element of the flat weights in use, plus 1.
        heads, scales: the specs as the writing ops take them.

    Raises:
        ValueError: a spec is out of range, or two overlap.
    """

    def __init__(self, specs: Sequence[HeadSpec], hidden_size: int, device: torch.device | str):
        self.specs, self.hidden_size = tuple(specs), hidden_size
        self.device = torch.device(device)
        _check(self.specs, hidden_size)
        ranges = [r for s in self.specs for r in s.weight_ranges(hidden_size)]
        self.num_sequences = max(s.rows.stop for s in self.specs)
        self.num_outputs = sum(s.size for s in self.specs)
        self.num_weights = max((r.stop for r in ranges), default=0)
        self.heads = [x for spec in self.specs for x in _fields(spec)]
        self.scales = [float(spec.scale) for spec in self.specs]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views [num_examples, num_outputs] of a flat [num_outputs] vector, one per task."""
        parts = flat.split([s.size for s in self.specs])
        return [p.view(-1, s.num_outputs) for p, s in zip(parts, self.specs, strict=True)]

    def pairs(self, features: Tensor) -> list[tuple[Tensor, ...]]:
        """(u, v) of each task's examples, or (x,): views [num_examples, hidden]."""
        return [
            tuple(features[r.start : r.stop].unflatten(0, (s.num_examples, -1)).unbind(1))
            for s, r in ((s, s.rows) for s in self.specs)
        ]

    def parameters(self, spec: HeadSpec, flat: Tensor) -> list[Tensor]:
        """Views of W [num_outputs, num_features] and b of a flat vector; none of ``cosine``."""
        views = [flat[r.start : r.stop] for r in spec.weight_ranges(self.hidden_size)]
        return [views[0].view(spec.num_outputs, -1), views[1]] if views else []


def _fields(spec: HeadSpec) -> list[int]:
    """One head in the order of csrc/common/task_heads_op.h."""
    numbers = spec.num_examples, spec.first_sequence, spec.num_outputs
    return [KINDS.index(spec.kind), *numbers, spec.weight_offset, spec.bias_offset]


def _check(specs: Sequence[HeadSpec], hidden_size: int) -> None:
    if not specs or hidden_size < 1:
        raise ValueError(
            f"HeadTable: {len(specs)} heads of width {hidden_size}; at least 1 of both"
        )
    for spec in specs:
        _check_spec(spec)
    _check_disjoint("sequences", [s.rows for s in specs])
    _check_disjoint("weights", [r for s in specs for r in s.weight_ranges(hidden_size)])


def _check_spec(spec: HeadSpec) -> None:
    is_cosine = spec.kind == "cosine"
    if spec.kind not in NUM_VECTORS:
        raise ValueError(f"HeadSpec: kind must be one of {', '.join(NUM_VECTORS)}, got {spec.kind}")
    if min(spec.num_examples, spec.num_outputs) < 1 or spec.first_sequence < 0:
        raise ValueError(f"HeadSpec: numbers must be positive and rows not negative, got {spec}")
    if is_cosine and spec.num_outputs != 1:
        raise ValueError(f"HeadSpec: a cosine is one output, got {spec.num_outputs}")
    if not is_cosine and min(spec.weight_offset, spec.bias_offset) < 0:
        raise ValueError(f"HeadSpec: offsets of weights must not be negative, got {spec}")


def _check_disjoint(what: str, ranges: list[range]) -> None:
    ordered = sorted(ranges, key=lambda r: r.start)
    for one, other in itertools.pairwise(ordered):
        if one.stop > other.start:
            raise ValueError(f"HeadTable: two heads share {what} from {other.start} on")
