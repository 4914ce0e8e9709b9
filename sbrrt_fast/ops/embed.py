"""BERT's first layer: LN(word[id] + position[p] + type[t]), then dropout.

Source: arXiv 1810.04805, figure 2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops.layernorm import layernorm_reference


def embed_reference(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor,
    type_: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    factors: Tensor | None = None,
) -> Tensor:
    """Embeddings of a batch of tokens.

    Args:
        ids, positions, types: int64 [num_tokens], rows of the three tables.
        word, position, type_: the tables, [rows, hidden].
        weight, shift, eps: LayerNorm's.
        factors: dropout's factors [num_tokens, hidden], or None.

    Returns:
        [num_tokens, hidden] of the tables' dtype.
    """
    total = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(types, type_)
    hidden = layernorm_reference(total, weight, shift, eps)
    return hidden if factors is None else hidden * factors
