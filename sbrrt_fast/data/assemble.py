"""Batches of examples by array slicing from pre-tokenised storage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbrrt_fast.data.batch import Layout, TokenBatch
from sbrrt_fast.data.store import TokenizedTask


def assemble(task: TokenizedTask, examples: np.ndarray | Tensor, first_row: int = 0) -> TokenBatch:
    """The packed batch of some examples; a siamese pair gives two adjacent sequences.

    Args:
        examples: int64 [num_examples], positions in the task.
        first_row: row of the first sequence in the round's batch.
    """
    stored, each = task.arrays, task.config.sequences_per_example
    sequences = (np.asarray(examples)[:, None] * each + np.arange(each)).ravel()
    begin = stored["starts"][sequences]
    layout = Layout.of(stored["starts"][sequences + 1] - begin)
    tokens = begin[layout.sequence] + layout.positions
    return TokenBatch.from_arrays(
        stored["tokens"][tokens],
        stored["token_types"][tokens],
        stored["special"][tokens],
        layout,
        np.arange(first_row, first_row + len(begin)),
    )


def labels_of(task: TokenizedTask, examples: np.ndarray | Tensor) -> Tensor:
    """float32 [num_examples]."""
    return torch.from_numpy(task.arrays["labels"][np.asarray(examples)])
