"""A step whose work on the device is captured and replayed.

A group is filled up to one of a few sizes (``data.bucket``). The first two of a size run launch by
launch, the third is captured; from then on a step is two copies to the device and one replay.
What a captured step needs from the host (tokens, labels, seed, round, learning rates) lies in
device memory that the copies fill, so nothing of it is frozen. Frozen are the addresses of weights,
averages and moments, and the optimiser's settings: where someone has replaced them, a step is
launched and then captured anew. What a round reports is launched before its replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.data.bucket import fill, fill_words
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.step.cuda_graph import CudaGraph, error_chain
from sbrrt_fast.training.step.frozen import Frozen
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.round_pass import Terms, differentiate, measure
from sbrrt_fast.training.step.static_group import StaticGroup
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.update import Plan, Structure

MAX_GRAPHS = 128
CAPTURE_FAILED = "capture failed"
SIGHTS = 3  # a size is captured when it comes that often: one that is rare costs more than it saves


class Key(NamedTuple):
    """A captured step's key: all that its launches depend on but their memory."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    num_row_tokens: int
    num_tokens: int
    max_length: int
    beta: float


@dataclass(frozen=True)
class Captured:
    """A step's work on groups of one shape.

    Attributes:
        graph: the recording. inputs: of the work. terms: names of the loss terms; values: float32
            [number of terms], its result.
        plan: of the update. capacity: of the workspaces when it was captured. frozen: the update's
            memory and settings, see ``FusedUpdate.frozen``.
    """

    graph: CudaGraph
    inputs: StaticGroup
    terms: tuple[str, ...]
    values: Tensor
    plan: Plan
    capacity: tuple[int, ...]
    frozen: Frozen


class CapturedStep:
    """A ``Step`` with written-out passes, from captured work: the same numbers.

    Args:
        step: which runs what is not captured.
        log: takes a line where capturing fails, after which the step runs launch by launch.
        graph: makes a recording; see ``CudaGraph``.
    """

    def __init__(
        self,
        step: Step,
        log: Callable[[str], object] = print,
        graph: Callable[[torch.device], CudaGraph] = CudaGraph,
    ):
        self.step, self.log, self._new_graph = step, log, graph
        self.model, self.teacher, self.optimizer = step.model, step.teacher, step.optimizer
        self.config, self.device, self.passes = step.config, step.device, step.passes
        self.update, self.num_steps, self.is_joint = step.update, step.num_steps, step.is_joint
        self._sights: dict[Key, int] = {}  # launched so far
        self._structures: dict[Key, Structure] = {}
        self._captured: dict[Key, Captured] = {}
        self._is_possible = True
        self.num_replays = self.num_steps_taken = 0
        self.num_rows = self.num_filled = 0
        self.seconds, self.bytes = 0.0, 0

    @property
    def clock(self) -> StageClock | NoClock:
        return self.step.clock

    @clock.setter
    def clock(self, clock: StageClock | NoClock) -> None:
        self.step.clock = clock

    def memory(self) -> dict[str, int]:
        """See ``Step.memory``."""
        return self.step.memory() | {"graphs": self.bytes}

    def summary(self) -> list[str]:
        """Lines on the step for the end of the run."""
        share = 1.0 - self.num_rows / max(self.num_filled, 1)
        return [
            f"{len(self._captured)} graphs, captured in {self.seconds:.1f} s with "
            f"{self.bytes / 2**20:.0f} MiB, did {self.num_replays} of {self.num_steps_taken} "
            f"optimiser steps; {share:.1%} of their tokens filled up"
        ]

    def round(self, batches: list[TaskBatch], index: int, report: bool = False) -> Terms:
        """See ``Step.round``."""
        return self.step.round(batches, index, report, self.train)

    def gradients(self, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
        """See ``Step.gradients``."""
        return self.step.gradients(batch, rng)

    def train(self, batches: list[TaskBatch], index: int, step: int, report: bool) -> Terms:
        """See ``Step.train``."""
        self.num_steps_taken += 1
        if not self._is_possible or not isinstance(self.clock, NoClock):  # a clock waits
            return self.step.train(batches, index, step, report)
        group = self._filled(batches)
        beta, tokens = self.update.beta_at(step), group.tokens
        sizes = group.num_row_tokens, tokens.num_tokens, tokens.max_length
        key = Key(group.names, group.counts, *sizes, beta)
        captured = self._ready(key, group, step)
        if captured is None:
            terms = self.step.train_groups([group], index, step, report)
            self._sights[key] = self._sights.get(key, 0) + 1
            self._structures[key] = self.update.structure_of(self.passes.gradients([group]))
            return terms
        reported = self._reported(group, index) if report else {}
        return reported | self._replay(captured, group, index)

    def _replay(self, captured: Captured, group: Group, index: int) -> Terms:
        self.num_replays += 1
        numbers = self.update.numbers(captured.plan)
        captured.inputs.load(group, (self.config.seed, index), numbers)
        captured.graph.replay()
        return dict(zip(captured.terms, captured.values.clone().unbind(), strict=True))

    def _reported(self, group: Group, index: int) -> Terms:
        """The terms that a reporting round adds, from the weights before the update."""
        ascent = self.step.ascent
        if ascent is None:
            return {}
        this = self.passes.begin(group, self.step.rng(index))
        this.clean(ascent)
        return measure(this, ascent, this.climb(ascent))

    def _filled(self, batches: list[TaskBatch]) -> Group:
        config, host = self.model.config, torch.device("cpu")
        batches = [batch.to(host) for batch in batches]
        positions = config.max_position_embeddings
        group = Group.filled(
            batches, self.passes.one_output, lambda tokens: fill(tokens, positions)
        )
        self.num_rows += sum(batch.tokens.num_tokens for batch in batches)
        self.num_filled += group.tokens.num_tokens
        return replace(group, tokens=fill_words(group.tokens, config.vocab_size))

    def _ready(self, key: Key, group: Group, step: int) -> Captured | None:
        """The captured work, made where it was seen often enough; None if there is none."""
        if self._sights.get(key, 0) < SIGHTS - 1:
            return None
        self.step.set_learning_rate(step)
        self.passes.refresh()
        plan, captured = self.update.plan(self._structures[key]), self._captured.get(key)
        if captured and not captured.frozen.holds():  # replaced from outside
            del self._captured[key]
            return None
        if captured and captured.plan is plan and captured.capacity == self.passes.capacity():
            return captured
        if captured is None and len(self._captured) >= MAX_GRAPHS:
            return None
        self._captured.pop(key, None)
        try:
            self._captured[key] = self._capture(key, group, plan)
        except RuntimeError as error:
            self._is_possible = False
            self.log(
                f"the step runs launch by launch, which is slower: {CAPTURE_FAILED}"
                f" ({error_chain(error)}); what that leaves in the GPU's allocator goes with the"
                " process: continue from the saved state with --resume --no-graphs"
            )
        return self._captured.get(key)

    def _capture(self, key: Key, group: Group, plan: Plan) -> Captured:
        inputs = StaticGroup(group, plan.num_numbers, self.device)
        inputs.load(group, (self.config.seed, 0), [float(self.num_steps)] * plan.num_numbers)
        graph, names = self._new_graph(self.device), []

        def work() -> Tensor:
            read, rng, numbers = inputs.read()
            this = self.passes.begin(read, rng)
            terms = differentiate(this, self.step.ascent, self.teacher is not None, self.clock)
            gradients = self.passes.gradients([read])
            with self.clock("optimiser"):
                norm = self.update.run(plan, numbers, gradients, key.beta, *self.passes.copies())
            terms["gradient_norm"] = norm
            names.extend(terms)
            return torch.stack([value.to(torch.float32) for value in terms.values()])

        values = graph.capture(work)
        self.passes.mark_fresh()
        self.seconds, self.bytes = self.seconds + graph.seconds, self.bytes + graph.bytes
        frozen = self.update.frozen(plan)
        return Captured(graph, inputs, tuple(names), values, plan, self.passes.capacity(), frozen)
