"""Multi-head attention of short sequences, with dropout on the probabilities.

For one (sequence, head) with queries Q, keys K and values V, each [length, head_dim]:

    P = softmax(Q K^T / sqrt(head_dim)),    O = (P * M) V

M holds dropout's factors, 0 or 1 / (1 - p). Source: arXiv 1706.03762, section 3.2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbrrt_fast.ops.autodiff import tangent_is_differentiated


def attention_reference(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, factors: Tensor | None = None
) -> Tensor:
    """Attention on a padded batch, by the definition.

    Args:
        query, key, value: [num_sequences, num_heads, max_length, head_dim], any floating dtype.
        key_mask: bool [num_sequences, max_length], True where a real token is.
        factors: dropout's factors on the probabilities,
            [num_sequences, num_heads, max_length, max_length], or None.

    Returns:
        [num_sequences, num_heads, max_length, head_dim] of ``value``'s dtype. A sequence without
        any real token gets the mean of its values; nothing reads it.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~key_mask[:, None, None, :], lowest)
    probabilities = _softmax(scores).to(value.dtype)
    if factors is not None:
        probabilities = probabilities * factors
    return probabilities @ value


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 or above."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not tangent_is_differentiated(scores):
        return torch.softmax(scores, dim=-1)
    exponential = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
    return exponential / exponential.sum(dim=-1, keepdim=True)
