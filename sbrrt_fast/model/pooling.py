"""One vector per sequence from its hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch

# `cls` is BERT's pooler, tanh(W h + b) of the first token's hidden state h; `cls_token` is h.
POOLINGS = ("cls", "cls_token", "mean")


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


def pooling_matrix(batch: TokenBatch, pooling: str) -> Tensor:
    """Pooling of a packed batch as a matrix, so that its transpose is the way back.

    Args:
        pooling: ``mean`` over each sequence's tokens, or ``cls`` and ``cls_token`` for the first
            one (what ``cls`` does to it afterwards is no part of this). A token that is not real
            has no share.

    Returns:
        float32 [num_sequences, num_tokens].
    """
    matrix = torch.zeros(batch.num_sequences, batch.num_tokens, device=batch.rows.device)
    starts = batch.cu_seqlens[:-1].to(torch.int64)
    lengths = batch.cu_seqlens[1:] - starts
    if pooling != "mean":
        first = starts.clamp(max=max(batch.num_tokens - 1, 0))[:, None]
        return matrix.scatter_(1, first, (lengths > 0).to(matrix.dtype)[:, None])
    share = batch.is_real / lengths[batch.sequence]
    return matrix.scatter_(0, batch.sequence[None, :], share[None, :])
