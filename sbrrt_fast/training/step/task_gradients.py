"""Each task's gradients of a step by themselves, until ``surgery`` makes one update of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbrrt_fast.model.packed.weights import ModelGradients
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.training.ranks.ranks import Ranks, Wait
from sbrrt_fast.training.step.surgery import (
    add_up,
    conflict_terms,
    inner_products,
    projection_places,
    update_factors,
)

NewGradients = Callable[[tuple[Tensor, Tensor]], ModelGradients]


class TaskGradients:
    """``GradientSums`` of steps in which a backward is of one task, and gradients are projected.

    Parts and ranks are added up in float32 before that, each task by itself.

    Args:
        made: what a backward writes. new_result: makes their like in given memory, float32.
        num_tasks: the most that a step may have.
        backend: of the ops. ranks: over which gradients are summed.

    Attributes:
        result: the update's gradients after ``finish``, but for the words' rows in ``words``.
    """

    def __init__(
        self,
        made: ModelGradients,
        new_result: NewGradients,
        num_tasks: int,
        backend: str,
        ranks: Ranks,
    ):
        self.made, self.backend, self.ranks = made, backend, ranks
        self._matrices = made.flat.new_zeros(num_tasks, *made.matrices.shape)
        self._flat = made.flat.new_zeros(num_tasks, *made.flat.shape)
        self.result = new_result((self._matrices[0], self._flat[0]))
        self.words: RowGradient | None = None
        self._words: list[RowGradient] = []
        self._places: dict[str, int] = {}  # of the step's tasks in the buffers
        self._waits: list[Wait] = []
        self._num_parts = self._num_done = 0

    @property
    def num_bytes(self) -> int:
        return self.made.num_bytes + self._matrices.nbytes + self._flat.nbytes

    def start(self, num_parts: int) -> None:
        """Before the passes of a step."""
        self._num_parts, self._num_done = num_parts, 0
        self._words.clear()
        self._places.clear()
        self.made.heads.zero_()  # a backward writes those of its own task

    def complete(self, layer: int) -> None:
        """A layer's gradients are no use before those of all."""

    def end_group(self, names: Sequence[str], words: RowGradient) -> None:
        """After the backward of a part of one task.

        Args:
            names: of the task. words: gradient of the word table, of the same rows in all backwards
                of the step.
        """
        (name,) = names
        is_new = name not in self._places
        place = self._places.setdefault(name, len(self._places))
        flat, matrices = self._flat[place], self._matrices[place]
        for total, made in ((flat, self.made.flat), (matrices, self.made.matrices)):
            total.copy_(made) if is_new else total.add_(made)
        self.made.heads.zero_()
        if is_new:
            self._words.append(words)
        else:
            self._words[place].values.add_(words.values)
        self._num_done += 1
        if self._num_done > (self._num_parts - 1) * len(self._places):  # the last part's
            sums = (flat, matrices, self._words[place].values)
            self._waits += [self.ranks.start_sum(x) for x in sums]

    def finish(self, rng: Tensor) -> dict[str, Tensor]:
        """After the last part: makes the update's gradients of the tasks'.

        Args:
            rng: int64 [2], (seed, round), which draws the order of projections.

        Returns:
            see ``surgery.conflict_terms``.
        """
        for wait in self._waits:
            wait()
        self._waits.clear()
        count, num_heads = len(self._places), len(self.made.heads)
        words = torch.stack([x.values for x in self._words])
        of_heads, others = self._flat[:count].tensor_split([num_heads], dim=1)
        shared = [self._matrices[:count].flatten(1), others, words.flatten(1)]
        products = sum(map(inner_products, shared))
        factors = update_factors(products, projection_places(rng, count, self.backend))
        for rows in shared:
            add_up(rows, factors)
        add_up(of_heads, torch.ones_like(factors))  # a head is one task's: nothing conflicts
        self.words = RowGradient(self._words[0].rows, words[0])
        return conflict_terms(products, list(self._places))
