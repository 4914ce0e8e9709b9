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
    starts, each = task.starts.numpy(), task.config.sequences_per_example
    sequences = (np.asarray(examples)[:, None] * each + np.arange(each)).ravel()
    begin = starts[sequences]
    lengths = starts[sequences + 1] - begin
    ends = lengths.cumsum()
    tokens = (begin - ends + lengths).repeat(lengths) + np.arange(ends[-1] if len(ends) else 0)
    return TokenBatch.from_arrays(
        task.tokens.numpy()[tokens],
        task.token_types.numpy()[tokens],
        task.special.numpy()[tokens],
        lengths,
        np.arange(first_row, first_row + len(lengths)),
    )


def labels_of(task: TokenizedTask, examples: np.ndarray | Tensor) -> Tensor:
    """float32 [num_examples]."""
    return task.labels[torch.as_tensor(examples, dtype=torch.int64)]
