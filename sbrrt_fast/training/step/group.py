"""Batches of one or several tasks that go through the encoder together."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Group:
    """The batches of one optimiser step.

    Attributes:
        names: of the tasks. counts: number of sequences of each.
        labels: of each, float32 [num_examples].
        tokens: all of them, packed; after the tasks' sequences may come some of padding.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    labels: tuple[Tensor, ...]
    tokens: TokenBatch

    @classmethod
    def of(cls, batches: list[TaskBatch]) -> Group:
        """The batches side by side."""
        return cls(
            tuple(batch.name for batch in batches),
            tuple(batch.tokens.num_sequences for batch in batches),
            tuple(batch.labels for batch in batches),
            TokenBatch.concatenate([batch.tokens for batch in batches]),
        )

    def with_words(self) -> Group:
        """The group whose batch knows its words."""
        return replace(self, tokens=self.tokens.with_words())

    def to(self, device: torch.device) -> Group:
        """The group with its tensors on ``device``."""
        labels = tuple(to_device(x, device) for x in self.labels)
        return replace(self, labels=labels, tokens=self.tokens.to(device))
