"""What one process computes of an optimiser step, and what it knows of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from sbrrt_fast.data.bucket import Sizes
from sbrrt_fast.training.step.group import TaskBatch


@dataclass(frozen=True)
class Common:
    """What is known of all parts of a step, on whichever rank they are computed.

    Attributes:
        num_tokens: of each part, by task. max_length: of their longest sequence.
        words: int64, the ids that occur in any of them, ascending, each once.
    """

    num_tokens: tuple[Mapping[str, int], ...]
    max_length: int
    words: Tensor

    def of(self, names: Collection[str]) -> Common:
        """The same of these tasks' batches alone."""
        parts = ({n: part[n] for n in part if n in names} for part in self.num_tokens)
        return replace(self, num_tokens=tuple(parts))

    def sizes(self, one_output: Collection[str]) -> tuple[Sizes, Sizes]:
        """Of the parts' batches of tasks in ``one_output``, and of the others."""
        sums = [
            [sum(n for name, n in part.items() if (name in one_output) == first) for first in order]
            for part in self.num_tokens
            for order in [(True, False)]
        ]
        return tuple(Sizes(max(of), min(of), self.max_length) for of in zip(*sums, strict=True))


@dataclass(frozen=True)
class Work:
    """What one process computes of an optimiser step.

    Attributes:
        parts: batches that go through the model one part after the other; gradients are summed.
        common: None where there are no other parts.
    """

    parts: tuple[list[TaskBatch], ...]
    common: Common | None = None

    @property
    def batches(self) -> list[TaskBatch]:
        """Those of all parts."""
        return [batch for part in self.parts for batch in part]
