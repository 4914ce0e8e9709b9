"""Each task's gradients under autograd by themselves, until ``surgery`` makes an update of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.ranks.ranks import Ranks
from sbrrt_fast.training.step.gradient_sums import sum_over_ranks
from sbrrt_fast.training.step.surgery import (
    add_up,
    conflict_terms,
    inner_products,
    projection_places,
    update_factors,
)


class AutogradTaskGradients:
    """Takes the parameters' ``grad`` after a task's backward, and gives back the update's.

    Args:
        model: whose parameters; its tasks share the encoder. backend: of the ops.
        ranks: over which gradients are summed.
    """

    def __init__(self, model: MultiTaskModel, backend: str, ranks: Ranks):
        self.model, self.backend, self.ranks = model, backend, ranks
        self._grads: dict[str, dict[int, Tensor]] = {}  # by task and id of the parameter

    @torch.no_grad()
    def take(self, name: str) -> None:
        """After a backward of a task, whose gradients are added to those it has left before."""
        grads = self._grads.setdefault(name, {})
        for p in self.model.parameters():
            if p.grad is not None:
                grads[id(p)] = grads[id(p)].add_(p.grad) if id(p) in grads else p.grad
                p.grad = None

    @torch.no_grad()
    def finish(self, rng: Tensor) -> dict[str, Tensor]:
        """See ``TaskGradients.finish``; the result is the parameters' ``grad``."""
        for grads in self._grads.values():
            sum_over_ranks(grads.values(), self.ranks)
        shared = {p: self._rows(p) for p in self.model.encoder.parameters() if self._has(p)}
        products = sum(inner_products(rows.flatten(1)) for rows in shared.values())
        places = projection_places(rng, len(self._grads), self.backend)
        factors = update_factors(products, places)
        for p, rows in shared.items():
            add_up(rows, factors)
            p.grad = rows[0].clone()
        self._give_back_heads()
        names = list(self._grads)
        self._grads.clear()
        return conflict_terms(products, names)

    def _has(self, p: Tensor) -> bool:
        return any(id(p) in grads for grads in self._grads.values())

    def _rows(self, p: Tensor) -> Tensor:
        """[num_tasks, *shape]: each task's gradient of a parameter."""
        none = torch.zeros_like(p)
        return torch.stack([grads.get(id(p), none) for grads in self._grads.values()])

    def _give_back_heads(self) -> None:
        """A head is one task's: nothing conflicts."""
        for name, grads in self._grads.items():
            for p in self.model.heads[name].parameters():
                p.grad = grads.get(id(p))
