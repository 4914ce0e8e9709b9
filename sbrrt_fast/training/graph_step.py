"""The written-out step, captured on the device and replayed.

A group is filled up to one of a few sizes (``data.bucket``). The first one of a size runs launch by
launch, the second is captured; from then on a step is two copies to the device and one replay.
What a captured step needs from the host (tokens, labels, seed, round, learning rates, numbers of
updates) lies in device memory that the copies fill, so nothing of it is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.bucket import fill
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.cuda_graph import CudaGraph
from sbrrt_fast.training.fast_step import FastStep
from sbrrt_fast.training.group import Group, TaskBatch
from sbrrt_fast.training.optimizer import set_learning_rate
from sbrrt_fast.training.profile import NoClock
from sbrrt_fast.training.static_group import StaticGroup
from sbrrt_fast.training.update import Alike, Structure

MAX_GRAPHS = 128


class Key(NamedTuple):
    """What a captured step is for: everything that its launches depend on but their memory."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    num_tokens: int
    max_length: int
    report: bool
    beta: float


@dataclass(frozen=True)
class Captured:
    """A step's work on groups of one shape.

    Attributes:
        graph: the recording. inputs: what it reads. terms: names of the loss terms; values: float32
            [number of terms], what it writes.
        plan: of the update. capacity: of the workspaces when it was captured.
    """

    graph: CudaGraph
    inputs: StaticGroup
    terms: tuple[str, ...]
    values: Tensor
    plan: list[Alike]
    capacity: tuple[int, ...]


class GraphStep(FastStep):
    """The same step as ``FastStep`` from captured work; arguments and results are its.

    Args:
        log: where it is told that capturing failed, after which the step runs launch by launch.
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
        key = Key(group.names, group.counts, tokens.num_tokens, tokens.max_length, report, beta)
        captured = self._ready(key, group, step)
        if captured is None:
            terms = self._train_group(group, index, step, report)
            self._structures[key] = self.update.structure_of(self._found)
            return terms
        self.num_replays += 1
        numbers = self.update.numbers(captured.plan)
        captured.inputs.load(group, (self.config.seed, index), numbers)
        captured.graph.replay()
        return dict(zip(captured.terms, captured.values.clone().unbind(), strict=True))

    def _filled(self, batches: list[TaskBatch]) -> Group:
        config, host = self.model.config, torch.device("cpu")
        group = Group.of([batch.to(host) for batch in batches])
        tokens = fill(group.tokens, config.max_position_embeddings, config.vocab_size)
        self.num_rows += group.tokens.num_tokens
        self.num_filled += tokens.num_tokens
        return Group(group.names, group.counts, group.labels, tokens)

    def _ready(self, key: Key, group: Group, step: int) -> Captured | None:
        """The captured work, made where it was seen once before; None if there is none."""
        if key not in self._structures:
            return None
        set_learning_rate(self.optimizer, step, self.num_steps, self.config.optimizer)
        plan, known = self.update.plan(self._structures[key]), self._captured.get(key)
        if known and known.plan is plan and known.capacity == self._capacity():
            return known
        if known is None and len(self._captured) >= MAX_GRAPHS:
            return None
        self._captured.pop(key, None)
        try:
            self._captured[key] = self._capture(key, group, plan)
        except RuntimeError as error:
            self._is_possible = False
            first = str(error).strip().partition("\n")[0]
            self.log(f"the step runs launch by launch, which is slower: capture failed ({first})")
        return self._captured.get(key)

    def _capture(self, key: Key, group: Group, plan: list[Alike]) -> Captured:
        num_numbers = sum(len(alike.places) + 1 for alike in plan)
        inputs = StaticGroup(group, num_numbers, self.device)
        inputs.load(group, (self.config.seed, 0), [1.0] * num_numbers)
        graph, names = self._new_graph(self.device), []

        def work() -> Tensor:
            read, rng, numbers = inputs.read()
            terms = self._pass(read, rng, key.report)
            with self.clock("optimiser"):
                norm = self.update.run(plan, numbers, self._found, key.beta, *self._copies())
            terms["gradient_norm"] = norm
            names.extend(terms)
            return torch.stack([value.to(torch.float32) for value in terms.values()])

        self._refresh()
        values = graph.capture(work)
        self._mark_fresh()
        self._found = {}  # their memory is the recording's
        self.seconds, self.bytes = self.seconds + graph.seconds, self.bytes + graph.bytes
        return Captured(graph, inputs, tuple(names), values, plan, self._capacity())

    def _capacity(self) -> tuple[int, ...]:
        """It changes where a workspace has grown: what was captured has the old addresses."""
        return tuple(e.workspace.capacity for e in (self.student, self.momentum) if e)
