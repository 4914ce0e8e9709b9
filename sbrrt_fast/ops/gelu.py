"""Bias and exact GELU: gelu(x + bias) with gelu(t) = t * Phi(t), Phi the normal distribution.

Source: arXiv 1606.08415, section 2; BERT uses the exact form with erf.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) for x [num_rows, features] and bias [features]; dtype of ``x``."""
    return F.gelu(x + bias.to(x.dtype))
