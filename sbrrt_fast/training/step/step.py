"""One SBRRT round: batches in, weights moved, loss terms out.

For every task's batch: task loss + lambda_s R_s + mu D_Breg, and the optimiser and the teacher step
after each batch (``per_task``) or once per round (``joint``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.ascent import Ascent
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.optimizer import set_learning_rate
from sbrrt_fast.training.step.resting import Resting, Unfreezing
from sbrrt_fast.training.step.round_pass import (
    Measured,
    RoundPass,
    Terms,
    differentiate,
    figures,
)
from sbrrt_fast.training.step.update import Gradients, TorchUpdate, build_update
from sbrrt_fast.training.step.work import Work

Train = Callable[[Work, int, int, bool], Terms]


class StepModel(Protocol):
    """Student and teacher, and how batches go through them.

    ``autograd_pass.AutogradModel`` and ``written_out_pass.WrittenOut`` are the two.
    """

    def groups(self, batches: list[TaskBatch], words: Tensor | None = None) -> list[Group]:
        """What goes through the encoder together, of one part of an optimiser step's batches.

        ``words``: see ``TokenBatch.with_words``.
        """

    def rest(self, resting: Resting) -> None:
        """What does not train from now on has no gradients."""

    def start(self, parts: list[list[Group]]) -> None:
        """Before the passes of a step, which are over its parts' groups."""

    def end_group(self, group: Group) -> None:
        """After a group's backward: parts' gradients are added."""

    def finish(self, rng: Tensor) -> Terms:
        """After the last part: gradients are summed over ranks, and conflicts between tasks' are
        taken out where the run is to.

        Returns:
            what there is to say of them, the same on all ranks.
        """

    def begin(self, group: Group, rng: Tensor) -> RoundPass:
        """A group's pass; rng is int64 [2], (seed, round), on the device."""

    def refresh(self) -> None:
        """Follows weights that something else than the update has changed."""

    def gradients(self, groups: list[Group]) -> Gradients:
        """Of the groups' losses, by id of the parameter."""

    def update(self, update: TorchUpdate, step: int, groups: list[Group]) -> Tensor:
        """Update number ``step`` with these gradients; returns their norm before clipping."""

    def forget(self) -> None:
        """Drops the gradients."""

    def memory(self) -> dict[str, int]:
        """Bytes held between rounds, by what holds them."""


class Step:
    """The training step.

    Args:
        kind: how batches go through the model: ``AutogradModel`` or ``WrittenOut``.
        model: the student. teacher: its momentum teacher, or None without Bregman.
        optimizer: over the model's trainable parameters.
        config: the run's configuration.
        num_rounds: of the whole run, for learning rate and momentum schedules.
        ranks: the processes that each compute a share of a round.

    Raises:
        ConfigError: SMART's settings are below what the precision resolves.
    """

    def __init__(
        self,
        kind: Callable[[MultiTaskModel, Teacher | None, RunConfig, Ranks], StepModel],
        model: MultiTaskModel,
        teacher: Teacher | None,
        optimizer: torch.optim.AdamW,
        config: RunConfig,
        num_rounds: int,
        ranks: Ranks = ONE_RANK,
    ):
        self.ranks = ranks
        self.model, self.teacher, self.optimizer, self.config = model, teacher, optimizer, config
        self.device = next(model.parameters()).device
        self.clock: StageClock | NoClock = NoClock()
        self.is_joint = config.round.update == "joint"
        self.num_steps = num_rounds * (1 if self.is_joint else len(config.trained_tasks))
        self.ascent = build_ascent(model, config)
        for module in (model, *([] if teacher is None else [teacher.module])):
            module.encoder.set_backend(config.backend)
        clip_norm = config.optimizer.clip_norm
        self.update = build_update(optimizer, teacher, clip_norm, self.num_steps, config.backend)
        self.passes = kind(model, teacher, config, self.ranks)
        self.unfreezing = Unfreezing(model, config.optimizer)
        self.rest(0)

    def round(self, batches: list[TaskBatch], index: int, report: bool = False) -> Terms:
        """Trains on one round, all of it; see ``round_of``.

        Args:
            batches: one per drawn task, rows numbered through the round.
        """
        steps = [batches] if self.is_joint else [[batch] for batch in batches]
        return self.round_of([Work((part,)) for part in steps], index, report)

    def round_of(
        self, works: list[Work], index: int, report: bool = False, train: Train | None = None
    ) -> Terms:
        """Trains on this rank's share of one round.

        Args:
            works: one per optimiser step; the step takes their batches to its device.
            index: number of rounds done before; with the seed it keys dropout and noise.
            report: also measure the perturbation and the adversarial gain.
            train: takes the place of ``train``.

        Returns:
            Detached scalars on the device: ``<task>/loss``, ``/smart``, ``/bregman``, ``/total``,
            with ``report`` also ``/perturbation`` and ``/gain``; with surgery what
            ``surgery.conflict_terms`` has; and ``gradient_norm``. They are of all parts on all
            ranks. Of a task drawn twice in a round they are the means over its batches, or with a
            step per task the values of its last one.
        """
        self.rest(index)
        terms: Terms = {}
        for position, work in enumerate(works):
            terms |= (train or self.train)(work, index, index * len(works) + position + 1, report)
        return terms

    def rest(self, done: int) -> None:
        """What does not train in the round after ``done`` rounds has no gradient, so no update.

        Its averages are moved, from the weights they are equal to to these: they keep their bits.
        """
        self.passes.rest(self.unfreezing.at(done))

    def train(self, work: Work, index: int, step: int, report: bool) -> Terms:
        """One optimiser step, number ``step`` from 1, on batches of a round."""
        words = work.common and work.common.words
        groups = [self.passes.groups(part, words) for part in work.parts]
        return self.train_groups(groups, index, step, report)

    def train_groups(self, parts: list[list[Group]], index: int, step: int, report: bool) -> Terms:
        """``train`` on batches side by side, in the host's memory or the device's."""
        self.passes.refresh()
        terms = self.differentiate(parts, self.rng(index), report)
        return terms | {"gradient_norm": self._update(parts[0], step)}

    def differentiate(self, parts: list[list[Group]], rng: Tensor, report: bool = False) -> Terms:
        """Loss terms of a step's parts; their gradients are left in ``passes``."""
        terms: Terms = {}
        measured: Measured = {}
        self.passes.start(parts)
        for groups in parts:
            of_part, found = self._differentiate(groups, rng, report)
            add_terms(terms, of_part)
            add_terms(measured, found)
        with self._surgery_clock():
            conflicts = self.passes.finish(rng)
        return self.over_ranks(terms) | figures(self.over_ranks(measured)) | conflicts

    def _differentiate(
        self, groups: list[Group], rng: Tensor, report: bool
    ) -> tuple[Terms, Measured]:
        """Of one part; means over the groups of a task drawn twice."""
        values: dict[str, list[Tensor]] = {}
        measured: Measured = {}
        for group in groups:
            this = self.passes.begin(group, rng)
            arguments = this, self.ascent, self.teacher is not None, self.clock, report
            terms, found = differentiate(*arguments)
            with self._surgery_clock():
                self.passes.end_group(group)
            add_terms(measured, found)
            for name, value in terms.items():
                values.setdefault(name, []).append(value)
        return {name: _mean(same) for name, same in values.items()}, measured

    def _surgery_clock(self) -> AbstractContextManager:
        """A stage of its own, of steps that have it."""
        has_surgery = self.config.optimizer.surgery != "none"
        return self.clock("surgery") if has_surgery else nullcontext()

    def over_ranks(self, terms: Terms) -> Terms:
        """The sum of each over all ranks, in one message."""
        if self.ranks.size == 1 or not terms:
            return terms
        flat = torch.cat([value.double().reshape(-1) for value in terms.values()])
        parts = self.ranks.sum(flat).split([value.numel() for value in terms.values()])
        pairs = zip(terms.items(), parts, strict=True)
        return {name: part.view_as(value).to(value.dtype) for (name, value), part in pairs}

    def gradients(self, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
        """Gradients of one batch's loss by parameter name, without an update."""
        groups = self.passes.groups([batch])
        self.passes.refresh()
        self.differentiate([groups], rng)
        found = self.passes.gradients(groups)
        named = {n: (p, found[id(p)]) for n, p in self.model.named_parameters() if id(p) in found}
        grads = {name: _dense(grad, p) for name, (p, grad) in named.items()}
        self.passes.forget()
        return grads

    def rng(self, index: int) -> Tensor:
        """(seed, round) int64 [2] on the device."""
        return to_device(torch.tensor([self.config.seed, index]), self.device)

    def memory(self) -> dict[str, int]:
        """Bytes that the step itself holds, beyond weights and optimiser state."""
        return self.passes.memory()

    def summary(self) -> list[str]:
        """Lines on the step for the end of the run."""
        return []

    def set_learning_rate(self, step: int) -> None:
        """That of update number ``step``, from 1."""
        set_learning_rate(self.optimizer, step, self.num_steps, self.config.optimizer)

    def _update(self, groups: list[Group], step: int) -> Tensor:
        self.set_learning_rate(step)
        with self.clock("optimiser"):
            return self.passes.update(self.update, step, groups)


def build_ascent(model: MultiTaskModel, config: RunConfig) -> Ascent | None:
    """A run's; None without SMART."""
    smart = resolve(config.smart)
    if smart.weight == 0:
        return None
    dtype = torch.bfloat16 if config.precision == "bf16" else next(model.parameters()).dtype
    return Ascent(smart, torch.finfo(dtype).eps, config.backend)


def add_terms(sums: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Adds to the sums by name."""
    for name, value in terms.items():
        sums[name] = sums[name] + value if name in sums else value


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)


def _dense(grad, parameter: Tensor) -> Tensor:
    """A gradient that later rounds do not overwrite; of some rows, with zeros in the others."""
    if isinstance(grad, Tensor):
        return grad.clone() if grad.dtype == parameter.dtype else grad.to(parameter.dtype)
    return grad.dense(parameter)
