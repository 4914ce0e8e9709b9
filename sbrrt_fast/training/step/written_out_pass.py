"""How batches go through a written-out model: what a ``Step`` asks it."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.ops.written_out import written_out_backend
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.resting import Resting
from sbrrt_fast.training.step.round_pass import Terms
from sbrrt_fast.training.step.update import FusedUpdate, Gradients
from sbrrt_fast.training.step.written_out import WrittenOutPass
from sbrrt_fast.training.step.written_out_model import WrittenOutModel


class WrittenOut(WrittenOutModel):
    """``step.StepModel`` with written-out passes: autograd's numbers, several times faster."""

    def groups(self, batches: list[TaskBatch], words: Tensor | None = None) -> list[Group]:
        parts = self.apart(batches)
        if words is None and len(parts) > 1:  # all tasks' gradients have the same rows
            words = torch.cat([batch.tokens.input_ids for batch in batches]).unique()
        return [self.group(part).with_words(words) for part in parts]

    def rest(self, resting: Resting) -> None:
        self.resting, self.sums.lowest_layer = resting, resting.lowest_layer

    def start(self, parts: list[list[Group]]) -> None:
        self.sums.start(len(parts) if self.has_surgery else sum(map(len, parts)))

    def end_group(self, group: Group) -> None:
        self.sums.end_group(group.names, self.grad_words)

    def finish(self, rng: Tensor) -> Terms:
        return self.sums.finish(rng)

    def begin(self, group: Group, rng: Tensor) -> WrittenOutPass:
        return WrittenOutPass(self, group.to(self.device), rng)

    def gradients(self, groups: list[Group]) -> Gradients:
        return self.gradients_of(groups)

    def update(self, update: FusedUpdate, step: int, groups: list[Group]) -> Tensor:
        norm = update.apply(step, self.gradients_of(groups), *self.copies())
        self.mark_fresh()
        return norm

    def forget(self) -> None:
        """Nothing is added up: the next backward overwrites the gradients."""


def layout_why_not(config: RunConfig, device: torch.device) -> str | None:
    """Why a run cannot take written-out passes, or None."""
    if config.backend == "reference":
        return "backend 'reference' was asked for"
    if config.layout != "packed":
        return f"layout '{config.layout}' has padding"
    if config.lora.rank:
        return "LoRA's adapters are differentiated by it"
    return written_out_backend(config.backend, device)[1] or None
