"""The written-out step, captured on the device and replayed.

A group is filled up to one of a few sizes (``data.bucket``). The first two of a size run launch by
launch, the third is captured; from then on a step is two copies to the device and one replay.
What a captured step needs from the host (tokens, labels, seed, round, learning rates) lies in
device memory that the copies fill, so nothing of it is frozen. Frozen are the addresses of weights,
averages and moments, and the optimiser's settings: where someone has replaced them, a step is
launched and then captured anew. What a round reports is launched before its replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.bucket import fill
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.cost.profile import NoClock
from sbrrt_fast.training.step.cuda_graph import CudaGraph, error_chain
from sbrrt_fast.training.step.fast_step import FastStep
from sbrrt_fast.training.step.frozen import Frozen
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.optimizer import set_learning_rate
from sbrrt_fast.training.step.static_group import StaticGroup
from sbrrt_fast.training.step.update import Plan, Structure

MAX_GRAPHS = 128
CAPTURE_FAILED = "capture failed"
SIGHTS = 3  # a size is captured when it comes that often: one that is rare costs more than it saves


class Key(NamedTuple):
    """A captured step's key: all that its launches depend on but their memory."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
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


class GraphStep(FastStep):
    """``FastStep`` from captured work: the same numbers.

    Args:
        log: takes a line where capturing fails, after which the step runs launch by launch.
        graph: makes a recording; see ``CudaGraph``.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        num_rounds: int,
        log: Callable[[str], object] = print,
        graph: Callable[[torch.device], CudaGraph] = CudaGraph,
    ):
        super().__init__(model, teacher, optimizer, config, num_rounds)
        self.log, self._new_graph = log, graph
        self._sights: dict[Key, int] = {}  # launched so far
        self._structures: dict[Key, Structure] = {}
        self._captured: dict[Key, Captured] = {}
        self._is_possible = True
        self.num_replays = self.num_steps_taken = 0
        self.num_rows = self.num_filled = 0
        self.seconds, self.bytes = 0.0, 0

    def memory(self) -> dict[str, int]:
        return super().memory() | {"graphs": self.bytes}

    def summary(self) -> list[str]:
        share = 1.0 - self.num_rows / max(self.num_filled, 1)
        return [
            f"{len(self._captured)} graphs, captured in {self.seconds:.1f} s with "
            f"{self.bytes / 2**20:.0f} MiB, did {self.num_replays} of {self.num_steps_taken} "
            f"optimiser steps; {share:.1%} of their tokens filled up"
        ]

    def _train(
        self, batches: list[TaskBatch], index: int, step: int, report: bool
    ) -> dict[str, Tensor]:
        self.num_steps_taken += 1
        if not self._is_possible or not isinstance(self.clock, NoClock):  # a clock waits
            return super()._train(batches, index, step, report)
        group = self._filled(batches)
        beta, tokens = self.update.beta_at(step), group.tokens
        key = Key(group.names, group.counts, tokens.num_tokens, tokens.max_length, beta)
        captured = self._ready(key, group, step)
        if captured is None:
            terms = self._train_group(group, index, step, report)
            self._sights[key] = self._sights.get(key, 0) + 1
            self._structures[key] = self.update.structure_of(self._grads)
            return terms
        reported = self._reported(group, index) if report else {}
        return reported | self._replay(captured, group, index)

    def _replay(self, captured: Captured, group: Group, index: int) -> dict[str, Tensor]:
        self.num_replays += 1
        numbers = self.update.numbers(captured.plan)
        captured.inputs.load(group, (self.config.seed, index), numbers)
        captured.graph.replay()
        return dict(zip(captured.terms, captured.values.clone().unbind(), strict=True))

    def _reported(self, group: Group, index: int) -> dict[str, Tensor]:
        """The terms that a reporting round adds, from the weights before the update."""
        rng = to_device(torch.tensor([self.config.seed, index]), self.device)
        return self.report(group.to(self.device), rng)

    def _filled(self, batches: list[TaskBatch]) -> Group:
        config, host = self.model.config, torch.device("cpu")
        group = Group.of([batch.to(host) for batch in batches])
        tokens = fill(group.tokens, config.max_position_embeddings, config.vocab_size)
        self.num_rows += group.tokens.num_tokens
        self.num_filled += tokens.num_tokens
        return Group(group.names, group.counts, group.labels, tokens)

    def _ready(self, key: Key, group: Group, step: int) -> Captured | None:
        """The captured work, made where it was seen often enough; None if there is none."""
        if self._sights.get(key, 0) < SIGHTS - 1:
            return None
        set_learning_rate(self.optimizer, step, self.num_steps, self.config.optimizer)
        self._refresh()
        plan, captured = self.update.plan(self._structures[key]), self._captured.get(key)
        if captured and not captured.frozen.holds():  # replaced from outside
            del self._captured[key]
            return None
        if captured and captured.plan is plan and captured.capacity == self._capacity():
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
            terms = self._pass(read, rng, report=False)
            with self.clock("optimiser"):
                norm = self.update.run(plan, numbers, self._grads, key.beta, *self._copies())
            terms["gradient_norm"] = norm
            names.extend(terms)
            return torch.stack([value.to(torch.float32) for value in terms.values()])

        values = graph.capture(work)
        self._mark_fresh()
        self._grads = {}  # their memory is the recording's
        self.seconds, self.bytes = self.seconds + graph.seconds, self.bytes + graph.bytes
        frozen = self.update.frozen(plan)
        return Captured(graph, inputs, tuple(names), values, plan, self._capacity(), frozen)

    def _capacity(self) -> tuple[int, ...]:
        """Sizes of the workspaces: where one has grown, captured work has the old addresses."""
        return tuple(e.workspace.capacity for e in (self.student, self.momentum) if e)
