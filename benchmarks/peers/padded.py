"""Batches of tasks as a data loader pads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.rounds import TaskBatch

BUCKET = 16  # lengths are padded to multiples of it where graphs are captured


@dataclass(frozen=True)
class Padded:
    """The sequences of one task, or of several, padded to the longest of them.

    Attributes:
        parts: (task, sequences) in the order of the rows.
        input_ids, mask: int64 [sequences, length].
        may_move: bool [sequences, length, 1], where the input may be perturbed.
        labels: of each task.
    """

    parts: tuple[tuple[str, int], ...]
    input_ids: Tensor
    mask: Tensor
    may_move: Tensor
    labels: tuple[Tensor, ...]

    @classmethod
    def of(cls, batches: Sequence[TaskBatch], multiple: int = 1) -> Padded:
        """Tasks' batches, in the host's memory, padded to a multiple of so many tokens."""
        rows = [_rows(batch) for batch in batches]
        longest = max(ids.shape[1] for ids, *_ in rows)
        longest += -longest % multiple
        ids, mask, may_move = (
            torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in columns])
            for columns in zip(*rows, strict=True)
        )
        parts = tuple((batch.name, batch.tokens.num_sequences) for batch in batches)
        return cls(parts, ids, mask, may_move[..., None], tuple(b.labels for b in batches))

    def to(self, device: torch.device) -> Padded:
        def sent(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        columns = (sent(x) for x in (self.input_ids, self.mask, self.may_move))
        return Padded(self.parts, *columns, tuple(sent(x) for x in self.labels))


def _rows(batch: TaskBatch) -> list[Tensor]:
    """Ids, mask, and where the input may be moved, [sequences, length]."""
    tokens = batch.tokens.padded()
    shape = tokens.num_sequences, tokens.max_length
    may_move = tokens.is_real & ~tokens.is_special
    return [x.view(shape) for x in (tokens.input_ids, tokens.is_real.long(), may_move)]
