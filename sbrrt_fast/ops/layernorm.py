"""The residual connection of a BERT layer: LN(residual + dropout(x + bias)).

With s = residual + M * (x + bias), mean m and variance v of s over its last dimension:

    y = weight * (s - m) / sqrt(v + eps) + shift

M holds dropout's factors. Source: arXiv 1810.04805 and arXiv 1607.06450, equation 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops.autodiff import tangent_is_differentiated


def dropout_add_layernorm_reference(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    factors: Tensor | None = None,
) -> Tensor:
    """LayerNorm of a residual sum.

    Args:
        x: [num_rows, hidden], the output of a matrix product, in the compute dtype.
        bias: [hidden], that product's bias.
        residual: [num_rows, hidden], float32 or float64: the residual stream keeps its precision.
        weight, shift: [hidden], LayerNorm's.
        eps: added to the variance.
        factors: dropout's factors [num_rows, hidden], or None.

    Returns:
        [num_rows, hidden] of the residual's dtype.
    """
    update = x + bias.to(x.dtype)
    if factors is not None:
        update = update * factors
    return layernorm_reference(residual + update, weight, shift, eps)


def layernorm_reference(x: Tensor, weight: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, statistics in float32 or above."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not tangent_is_differentiated(x):
        return F.layer_norm(x, x.shape[-1:], weight, shift, eps)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return weight * (centred * torch.rsqrt(variance + eps)) + shift
