"""Batches of one or several tasks that go through the encoder together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.transfer import to_device


@dataclass(frozen=True)
class TaskBatch:
    """One task's part of a round: its tokens and labels float32 [num_examples]."""

    name: str
    tokens: TokenBatch
    labels: Tensor

    def to(self, device: torch.device) -> TaskBatch:
        """The batch with its tensors on ``device``."""
        return TaskBatch(self.name, self.tokens.to(device), to_device(self.labels, device))


def tokens_by_task(batches: Iterable[TaskBatch]) -> Counter[str]:
    """Number of tokens of each task's batches."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts[batch.name] += batch.tokens.num_tokens
    return counts


def merge_repeats(batches: list[TaskBatch]) -> list[TaskBatch]:
    """Batches of one task as one, where it first comes."""
    by_name: dict[str, list[TaskBatch]] = {}
    for batch in batches:
        by_name.setdefault(batch.name, []).append(batch)
    return [
        TaskBatch(
            name,
            TokenBatch.concatenate([batch.tokens for batch in same]),
            torch.cat([batch.labels for batch in same]),
        )
        for name, same in by_name.items()
    ]


@dataclass(frozen=True)
class Group:
    """The batches of one optimiser step, side by side.

    Batches whose Jacobian has one row per example come first. Behind theirs and behind the others'
    sequences there may be some of padding.

    Attributes:
        names: of the tasks, each once. repeats: how many batches of equal size each has.
        counts: number of sequences of each. firsts: the first one of each.
        labels: of all examples, float32.
        tokens: of all sequences, packed.
        num_row_sequences, num_row_tokens: of the batches with one row per example, padding too.
    """

    names: tuple[str, ...]
    repeats: tuple[int, ...]
    counts: tuple[int, ...]
    firsts: tuple[int, ...]
    labels: Tensor
    tokens: TokenBatch
    num_row_sequences: int
    num_row_tokens: int

    @classmethod
    def of(cls, batches: list[TaskBatch], one_output: Collection[str] = ()) -> Group:
        """The batches as they are.

        Args:
            one_output: tasks with one row per example.
        """
        return cls.filled(batches, one_output, lambda tokens: tokens)

    @classmethod
    def filled(
        cls,
        batches: list[TaskBatch],
        one_output: Collection[str],
        fill: Callable[[TokenBatch], TokenBatch],
    ) -> Group:
        """The batches with padding sequences behind those of either kind.

        Args:
            fill: adds sequences to a batch.
        """
        merged = merge_repeats(batches)
        parts = [[b for b in merged if (b.name in one_output) == first] for first in (True, False)]
        tokens = [
            fill(TokenBatch.concatenate([batch.tokens for batch in part])) if part else None
            for part in parts
        ]
        ordered = [batch for part in parts for batch in part]
        rows, others = tokens
        num_sequences = 0 if rows is None else rows.num_sequences
        counts = tuple(batch.tokens.num_sequences for batch in ordered)
        firsts = [sum(counts[:i]) for i in range(len(parts[0]))]
        ends = range(len(parts[0]), len(ordered))
        firsts += [num_sequences + sum(counts[len(parts[0]) : i]) for i in ends]
        return cls(
            tuple(batch.name for batch in ordered),
            tuple(sum(b.name == batch.name for b in batches) for batch in ordered),
            counts,
            tuple(firsts),
            torch.cat([batch.labels for batch in ordered]),
            TokenBatch.concatenate([part for part in (rows, others) if part is not None]),
            num_sequences,
            0 if rows is None else rows.num_tokens,
        )

    def with_words(self) -> Group:
        """The group whose batch knows its words."""
        return replace(self, tokens=self.tokens.with_words())

    def to(self, device: torch.device) -> Group:
        """The group with its tensors on ``device``."""
        labels = to_device(self.labels, device)
        return replace(self, labels=labels, tokens=self.tokens.to(device))
