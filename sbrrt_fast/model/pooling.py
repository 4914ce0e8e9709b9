"""One vector per sequence from its hidden states."""

from __future__ import annotations

from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch


def mean_pool(hidden: Tensor, batch: TokenBatch) -> Tensor:
    """Mean over each sequence's real tokens.

    Args:
        hidden: [num_tokens, hidden] in the batch's layout.

    Returns:
        [num_sequences, hidden] of the same dtype; a sequence without real tokens gives zeros.
    """
    weight = batch.is_real.to(hidden.dtype)
    total = batch.pad(hidden * weight[:, None]).sum(dim=1)
    count = batch.pad(weight).sum(dim=1, keepdim=True)
    return total / count.clamp(min=1.0)
