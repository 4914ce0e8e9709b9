"""When a reference must be built from elementary operations.

torch's fused softmax and LayerNorm have forward-mode derivatives that cannot themselves be
differentiated: softmax's raises, LayerNorm's silently drops the terms through its statistics.
SMART's linear branch differentiates J delta, so there the definition is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def tangent_is_differentiated(x: Tensor) -> bool:
    """True for a dual tensor while autograd records."""
    return torch.is_grad_enabled() and forward_ad.unpack_dual(x).tangent is not None
