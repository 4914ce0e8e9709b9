"""The clean pass of a model that is a function of its embeddings; ``smart.ascent.CleanPass``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.smart.ascent import Jacobian
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.model_function import uncached_autocast


@dataclass(frozen=True)
class MeanDivergence:
    """``smart.ascent.Smoothness`` of one task's clean logits; see ``AutogradPass``."""

    divergence: Divergence
    logits: Tensor
    share: float = 1.0

    def cotangents(self, tangents: Tensor) -> Tensor:
        scale = self.share / len(self.logits)
        return self.divergence.fisher(self.logits.detach(), tangents) * scale

    def values(self, changes: Tensor) -> Tensor:
        """Gradients flow into the clean logits and the change."""
        return self.divergence.delta(self.logits, changes).mean()


class AutogradPass:
    """``smart.ascent.CleanPass`` of a model given as a function of its embeddings.

    Args:
        model_fn, divergence: see ``SmartRegularizer``. embeddings, logits: of the clean pass.
        jacobian: of the clean pass.
        share: the examples' part of all those whose mean divergence is climbed. Gradients are of
            that mean; values are means over the examples at hand.
    """

    def __init__(
        self,
        model_fn: Callable[[Tensor], Tensor],
        divergence: Divergence,
        embeddings: Tensor,
        logits: Tensor,
        jacobian: Jacobian,
        share: float = 1.0,
    ):
        self.model_fn, self.divergence, self.share = model_fn, divergence, share
        self.embeddings, self.logits, self.jacobian = embeddings, logits, jacobian
        self.smoothness = MeanDivergence(divergence, logits, share)

    def change(self, delta: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.model_fn(self.embeddings + delta) - self.logits
        with uncached_autocast(self.embeddings):
            return self.model_fn(self.embeddings + delta) - self.logits

    def finite_gradient(self, delta: Tensor) -> Tensor:
        with torch.enable_grad(), input_gradients_only():
            point = (self.embeddings.detach() + delta).requires_grad_()
            loss = self.divergence(self.model_fn(point), self.logits.detach()).mean()
            return torch.autograd.grad(self.share * loss, point)[0]
