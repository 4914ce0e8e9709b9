"""How the ops meet autograd: what must be elementary, what must not be computed.

torch's fused softmax and LayerNorm have forward-mode derivatives that cannot themselves be
differentiated: softmax's raises, LayerNorm's silently drops the terms through its statistics.
SMART's linear branch differentiates J delta, so there the definition is written out.

torch does not tell a Python function that ``autograd.grad(..., inputs=...)`` wants no gradient of
the weights, so SMART's ascent says it with ``input_gradients_only``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

_input_gradients_only = False  # of the process: backward passes run on threads of their own


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Backward passes that run inside compute no gradient of any op's weights.

    Weights then get no gradient at all from those ops: ask ``torch.autograd.grad`` for activations
    alone. The fused ops obey; the references leave it to autograd, which follows ``inputs``.
    """
    global _input_gradients_only
    before, _input_gradients_only = _input_gradients_only, True
    try:
        yield
    finally:
        _input_gradients_only = before


def only_input_gradients() -> bool:
    """Whether a backward pass leaves the weights' gradients out.

    A compiled graph serves calls inside and outside ``input_gradients_only``, so it has them all.
    """
    return not torch.compiler.is_compiling() and _input_gradients_only


def has_tangent(x: Tensor) -> bool:
    """True for a dual tensor."""
    # The level is what unpack_dual asks first; asking it here spares most calls of most ops.
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def is_batched_or_nested(*tensors: Tensor) -> bool:
    """Whether torch.func batches these tensors, or differentiates while autograd records.

    Functions of native ops have no rule for torch.vmap, and in torch.func.grad their backward
    passes do not see what is differentiated again. torch.compile sees to what it traces.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return torch.is_grad_enabled() or any(map(torch._C._functorch.is_batchedtensor, tensors))


def tangent_is_differentiated(x: Tensor) -> bool:
    """True for a dual tensor while autograd records."""
    return torch.is_grad_enabled() and has_tangent(x)
