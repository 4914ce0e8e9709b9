"""l_s, the divergence SMART and Bregman measure between two outputs (arXiv 1911.03437, 3.1).

Each takes its change as an argument of its own, so that a linearised change keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.ops.symmetric_kl import (
    squared_difference_delta,
    symmetric_kl_delta,
    symmetric_kl_fisher,
)


@dataclass(frozen=True)
class Divergence:
    """A divergence l_s(w + d, w) per example.

    Attributes:
        delta: (w, d) -> [num_examples].
        fisher: (w, t) -> the gradient in d at d = t, to first order in t.
        is_of_classes: w and d are logits [num_examples, num_classes], and what is added to all
            classes alike changes nothing; else values, compared entry by entry.
    """

    delta: Callable[[Tensor, Tensor], Tensor]
    fisher: Callable[[Tensor, Tensor], Tensor]
    is_of_classes: bool = False

    def __call__(self, z: Tensor, w: Tensor) -> Tensor:
        """l_s(z, w) per example; gradients flow into both."""
        return self.delta(w, z - w)


def symmetric_kl_divergence(backend: str = "reference") -> Divergence:
    """Symmetric KL by a named implementation; the reference is differentiable to any order."""
    return Divergence(
        partial(symmetric_kl_delta, backend=backend),
        partial(symmetric_kl_fisher, backend=backend),
        is_of_classes=True,
    )


SYMMETRIC_KL = symmetric_kl_divergence()
SQUARED = Divergence(squared_difference_delta, lambda values, tangent: 2.0 * tangent)


def divergence_of(task: TaskConfig, backend: str = "reference") -> Divergence:
    """Symmetric KL for classes, squared difference for values."""
    return SQUARED if task.is_regression else symmetric_kl_divergence(backend)
