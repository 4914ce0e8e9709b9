"""How the ops meet autograd: what must be elementary, what must not be computed.

torch's fused softmax and LayerNorm have forward-mode derivatives that cannot themselves be
differentiated: softmax's raises, LayerNorm's silently drops the terms through its statistics.
SMART's linear branch differentiates J delta, so there the definition is written out.

torch does not tell a Python function that ``autograd.grad(..., inputs=...)`` wants no gradient of
the weights, so SMART's ascent says it with ``input_gradients_only``. The extension holds that flag,
since most backward passes are C++ nodes (``csrc/autograd``); without it, this module does, for the
Triton ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sbrrt_fast import _extension


class _Flag:
    """What the extension holds, where there is none."""

    def __init__(self):
        self._is_set = False

    def input_gradients_only(self) -> bool:
        return self._is_set

    def set_input_gradients_only(self, is_set: bool) -> bool:
        """Returns what it was."""
        before, self._is_set = self._is_set, is_set
        return before


_FLAG = _Flag()


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Backward passes that run inside compute no gradient of any op's weights.

    Weights then get no gradient at all from those ops: ask ``torch.autograd.grad`` for activations
    alone. Native and Triton ops obey; the references leave it to autograd, which follows
    ``inputs``.
    """
    flag = _extension.extension or _FLAG
    before = flag.set_input_gradients_only(True)
    try:
        yield
    finally:
        flag.set_input_gradients_only(before)


def needs_weight_gradients(ctx, *weights: int) -> bool:
    """Whether a Function's backward must compute gradients of the inputs numbered ``weights``.

    A compiled graph serves calls inside and outside ``input_gradients_only``, so it has them all.
    """
    flag = _extension.extension or _FLAG
    if not torch.compiler.is_compiling() and flag.input_gradients_only():
        return False
    return any(ctx.needs_input_grad[i] for i in weights)


def has_tangent(x: Tensor) -> bool:
    """True for a dual tensor."""
    # The level is what unpack_dual asks first; asking it here spares most calls of most ops.
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def is_transformed(*tensors: Tensor) -> bool:
    """Whether forward mode, that of torch.func included, looks at an op of these tensors.

    Only then does a Function need ``setup_context`` and ``jvp``. Without them ``apply`` is several
    times cheaper, as torch inspects the signature of ``forward`` at every call that has them.
    """
    return torch._C._are_functorch_transforms_active() or any(map(has_tangent, tensors))


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
