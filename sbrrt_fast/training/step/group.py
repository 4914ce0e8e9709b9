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
    """One task's batch of a round, or a share of it.

    Attributes:
        name: of the task. tokens: of the sequences. labels: float32 [num_examples].
        share: its part of the examples over which the task's means go; 0 of examples that take part
            in none.
    """

    name: str
    tokens: TokenBatch
    labels: Tensor
    share: float = 1.0

    def to(self, device: torch.device) -> TaskBatch:
        """The batch with its tensors on ``device``."""
        labels = to_device(self.labels, device)
        return replace(self, tokens=self.tokens.to(device), labels=labels)


def tokens_by_task(batches: Iterable[TaskBatch]) -> Counter[str]:
    """Number of tokens of each task's batches."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts[batch.name] += batch.tokens.num_tokens
    return counts


def by_task(batches: Iterable[TaskBatch]) -> list[list[TaskBatch]]:
    """The batches of each task, in the order in which tasks first come."""
    found: dict[str, list[TaskBatch]] = {}
    for batch in batches:
        found.setdefault(batch.name, []).append(batch)
    return list(found.values())


def merge_repeats(batches: list[TaskBatch]) -> list[TaskBatch]:
    """Batches of one task as one, where it first comes; those of share 0 only where it has no
    others."""
    return [_merged(same) for same in by_task(batches)]


def _merged(same: list[TaskBatch]) -> TaskBatch:
    """One task's batches as one, whose share is of all their examples."""
    counted = [batch for batch in same if batch.share] or same[:1]
    return TaskBatch(
        same[0].name,
        TokenBatch.concatenate([batch.tokens for batch in counted]),
        torch.cat([batch.labels for batch in counted]),
        sum(batch.share for batch in same) / len(same),
    )


@dataclass(frozen=True)
class Group:
    """The batches of one optimiser step, side by side.

    Batches whose Jacobian has one row per example come first. Behind theirs and behind the others'
    sequences there may be some of padding.

    Attributes:
        names: of the tasks, each once. repeats: how many batches of equal size each has.
        shares: see ``TaskBatch``.
        counts: number of sequences of each. firsts: the first one of each.
        labels: of all examples, float32.
        tokens: of all sequences, packed.
        num_row_sequences, num_row_tokens: of the batches with one row per example, padding too.
    """

    names: tuple[str, ...]
    repeats: tuple[int, ...]
    shares: tuple[float, ...]
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
        return cls.filled(batches, one_output, lambda tokens, is_first: tokens)

    @classmethod
    def filled(
        cls,
        batches: list[TaskBatch],
        one_output: Collection[str],
        fill: Callable[[TokenBatch, bool], TokenBatch],
    ) -> Group:
        """The batches with padding sequences behind those of either kind.

        Args:
            fill: adds sequences to a batch; it is told whether these are those with one row per
                example, which come first.
        """
        merged = merge_repeats(batches)
        parts = [[b for b in merged if (b.name in one_output) == first] for first in (True, False)]
        tokens = [
            fill(TokenBatch.concatenate([b.tokens for b in part]), i == 0) if part else None
            for i, part in enumerate(parts)
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
            tuple(batch.share for batch in ordered),
            counts,
            tuple(firsts),
            torch.cat([batch.labels for batch in ordered]),
            TokenBatch.concatenate([part for part in (rows, others) if part is not None]),
            num_sequences,
            0 if rows is None else rows.num_tokens,
        )

    def with_words(self, words: Tensor | None = None) -> Group:
        """The group whose batch knows its words; see ``TokenBatch.with_words``."""
        return replace(self, tokens=self.tokens.with_words(words))

    def to(self, device: torch.device) -> Group:
        """The group with its tensors on ``device``."""
        labels = to_device(self.labels, device)
        return replace(self, labels=labels, tokens=self.tokens.to(device))
