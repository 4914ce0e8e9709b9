"""What the ranks of a run get of a typical round, dealt as a run deals it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from benchmarks.harness.rounds import SBRRT
from benchmarks.harness.shapes import SEQUENCES_PER_EXAMPLE, task_lengths
from sbrrt_fast.data.bucket import bucket_size
from sbrrt_fast.training.shares import Places, deal

Lengths = np.ndarray  # int64, tokens by example


class Share(NamedTuple):
    """What every rank computes at most.

    Attributes:
        tokens: by task, of the rank with the most, apart for tasks with one output and others.
        num_filled: tokens that a captured step fills all shares up to.
    """

    tokens: dict[str, int]
    num_filled: int


@cache
def largest_share(
    tasks: tuple[str, ...], num_examples: int, repeats: int, num_ranks: int, max_positions: int
) -> Share:
    """Of one optimiser step.

    Args:
        tasks: of the step. num_examples: different ones of each; repeats: how often each occurs.
        max_positions: of the model.
    """
    lengths = [np.tile(example_lengths(task, num_examples), repeats) for task in tasks]
    parts = [
        {task: tokens_of(*pair) for task, *pair in zip(tasks, lengths, part, strict=True)}
        for part in deal(lengths, num_ranks)
    ]
    kinds = [[t for t in tasks if SBRRT.tasks[t].has_one_output == kind] for kind in (True, False)]
    most: dict[str, int] = {}
    num_filled = 0
    for kind in filter(None, kinds):
        part = max(parts, key=lambda part, kind=kind: sum(part[task] for task in kind))
        most |= {task: part[task] for task in kind}
        num_filled += bucket_size(sum(part[task] for task in kind), max_positions)
    return Share(most, num_filled)


def example_lengths(task: str, num_examples: int) -> Lengths:
    """Tokens of each example, a pair's two sequences together."""
    lengths, each = task_lengths(task, num_examples), SEQUENCES_PER_EXAMPLE[task]
    return np.array(lengths).reshape(-1, each).sum(1)


def tokens_of(lengths: Lengths, places: Places) -> int:
    """Of a part's examples; a part without any computes the shortest."""
    return int(lengths[places].sum()) or int(lengths.min())
