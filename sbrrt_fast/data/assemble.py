"""Batches of examples by array slicing from pre-tokenised storage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbrrt_fast.data.batch import Layout, TokenBatch
from sbrrt_fast.data.store import TokenizedTask


def assemble(
    task: TokenizedTask,
    examples: np.ndarray | Tensor,
    first_row: int = 0,
    places: np.ndarray | None = None,
) -> TokenBatch:
    """The packed batch of some examples; a siamese pair gives two adjacent sequences.

    Args:
        examples: int64 [num_examples], positions in the task.
        first_row: row of the first sequence in the round's batch.
        places: int64 [num_examples], the examples' places in the task's batch of the round, where
            they are a part of it; the first ones if None.
    """
    stored = task.arrays
    places = np.arange(len(examples)) if places is None else places
    sequences = sequences_of(task, np.asarray(examples))
    begin = stored["starts"][sequences]
    layout = Layout.of(stored["starts"][sequences + 1] - begin)
    tokens = begin[layout.sequence] + layout.positions
    return TokenBatch.from_arrays(
        stored["tokens"][tokens],
        stored["token_types"][tokens],
        stored["special"][tokens],
        layout,
        first_row + sequences_of(task, places),
    )


def sequences_of(task: TokenizedTask, examples: np.ndarray) -> np.ndarray:
    """The sequences of examples int64 [num_examples], in their order."""
    each = task.config.sequences_per_example
    return (examples[:, None] * each + np.arange(each)).ravel()


def labels_of(task: TokenizedTask, examples: np.ndarray | Tensor) -> Tensor:
    """float32 [num_examples]."""
    return torch.from_numpy(task.arrays["labels"][np.asarray(examples)])
