"""Batches of examples by array slicing from pre-tokenised storage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask


def assemble(task: TokenizedTask, examples: np.ndarray | Tensor, first_row: int = 0) -> TokenBatch:
    """The packed batch of some examples; a siamese pair gives two adjacent sequences.

    Args:
        examples: int64 [num_examples], positions in the task.
        first_row: row of the first sequence in the round's batch.
    """
    examples = torch.as_tensor(examples, dtype=torch.int64)
    each = task.config.sequences_per_example
    sequences = (examples[:, None] * each + torch.arange(each)).flatten()
    begin = task.starts[sequences]
    lengths = task.starts[sequences + 1] - begin
    shift = begin - (torch.cumsum(lengths, 0) - lengths)
    tokens = torch.repeat_interleave(shift, lengths) + torch.arange(int(lengths.sum()))
    rows = torch.arange(first_row, first_row + len(sequences))
    return TokenBatch.from_packed(
        task.tokens[tokens], task.token_types[tokens], task.special[tokens], lengths, rows
    )


def labels_of(task: TokenizedTask, examples: np.ndarray | Tensor) -> Tensor:
    """float32 [num_examples]."""
    return task.labels[torch.as_tensor(examples, dtype=torch.int64)]
