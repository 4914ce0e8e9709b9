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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.data.bucket import fill, words_among
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.step.cuda_graph import CudaGraph, error_chain
from sbrrt_fast.training.step.frozen import Frozen
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.round_pass import Measured, Terms, figures, measure
from sbrrt_fast.training.step.static_group import StaticGroup
from sbrrt_fast.training.step.step import Step, add_terms
from sbrrt_fast.training.step.update import Plan, Structure
from sbrrt_fast.training.step.work import Common, Work

MAX_GRAPHS = 128
CAPTURE_FAILED = "capture failed"
SIGHTS = 3  # a size is captured when it comes that often: one that is rare costs more than it saves


class Shape(NamedTuple):
    """Of a group: all that the launches of its passes depend on but their memory."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]
    num_row_sequences: int
    num_row_tokens: int
    num_sequences: int
    num_tokens: int
    max_length: int

    @classmethod
    def of(cls, group: Group) -> Shape:
        """The group's."""
        tokens = group.tokens
        rows = group.num_row_sequences, group.num_row_tokens
        all_of_it = tokens.num_sequences, tokens.num_tokens, tokens.max_length
        return cls(group.names, group.shares, group.counts, *rows, *all_of_it)


class Key(NamedTuple):
    """A captured step's key."""

    parts: tuple[Shape, ...]
    beta: float
    num_resting: int  # heights, see ``Resting``


@dataclass(frozen=True)
class Captured:
    """A step's work on groups of certain shapes.

    Attributes:
        graph: the recording. inputs: of the work, one per part.
        terms: names of the loss terms; values: float32 [number of terms], its result.
        plan: of the update. capacity: of the workspaces when it was captured. frozen: the update's
            memory and settings, see ``FusedUpdate.frozen``.
    """

    graph: CudaGraph
    inputs: list[StaticGroup]
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
        self.ranks = step.ranks
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
        steps = [batches] if self.is_joint else [[batch] for batch in batches]
        return self.round_of([Work((part,)) for part in steps], index, report)

    def round_of(self, works: list[Work], index: int, report: bool = False) -> Terms:
        """See ``Step.round_of``."""
        return self.step.round_of(works, index, report, self.train)

    def gradients(self, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
        """See ``Step.gradients``."""
        return self.step.gradients(batch, rng)

    def train(self, work: Work, index: int, step: int, report: bool) -> Terms:
        """See ``Step.train``."""
        self.num_steps_taken += 1
        if not self._is_possible or not isinstance(self.clock, NoClock):  # a clock waits
            return self.step.train(work, index, step, report)
        parts = [self._part(part, work.common) for part in work.parts]
        groups = [group for part in parts for group in part]
        num_resting = self.passes.resting.num_heights
        self._forget_others(num_resting)
        key = Key(tuple(map(Shape.of, groups)), self.update.beta_at(step), num_resting)
        captured = self._ready(key, parts, step)
        if captured is None:
            terms = self.step.train_groups(parts, index, step, report)
            self._sights[key] = self._sights.get(key, 0) + 1
            self._structures[key] = self.update.structure_of(self.passes.gradients(parts[0]))
            return terms
        reported = self._reported(groups, index) if report else {}
        return reported | self._replay(captured, groups, index)

    def _forget_others(self, num_resting: int) -> None:
        """More of the encoder trains than before, and what it was captured for comes no more."""
        others = [key for key in self._captured if key.num_resting != num_resting]
        for key in others:
            del self._captured[key]

    def _replay(self, captured: Captured, groups: list[Group], index: int) -> Terms:
        self.num_replays += 1
        numbers = self.update.numbers(captured.plan)
        for inputs, group in zip(captured.inputs, groups, strict=True):
            inputs.load(group, (self.config.seed, index), numbers)
        captured.graph.replay()
        return dict(zip(captured.terms, captured.values.clone().unbind(), strict=True))

    def _reported(self, groups: list[Group], index: int) -> Terms:
        """The terms that a reporting round adds, from the weights before the update."""
        ascent, measured = self.step.ascent, Measured()
        if ascent is None:
            return {}
        for group in groups:
            this = self.passes.begin(group, self.step.rng(index))
            this.clean(ascent)
            add_terms(measured, measure(this, ascent, this.climb(ascent)))
        return figures(self.step.over_ranks(measured))

    def _part(self, batches: list[TaskBatch], common: Common | None = None) -> list[Group]:
        """A part of a step, filled up; as all parts on all ranks are where there are others."""
        groups = [self._filled(part, common) for part in self.passes.apart(batches)]
        ids = [group.tokens.input_ids for group in groups]
        if common is not None:
            ids = [common.words, torch.zeros(1, dtype=torch.int64)]  # 0 is padding
        num_parts = 1 if common is None else len(common.num_tokens)
        num_tokens = num_parts * sum(group.tokens.num_tokens for group in groups)
        words = words_among(torch.cat(ids), num_tokens, self.model.config.vocab_size)
        return [group.with_words(words) for group in groups]

    def _filled(self, batches: list[TaskBatch], common: Common | None) -> Group:
        """Batches that go through the encoder together, filled up, without their words."""
        config, host = self.model.config, torch.device("cpu")
        batches = [batch.to(host) for batch in batches]
        positions = config.max_position_embeddings
        one_output = self.passes.one_output
        sizes = (None, None)
        if common is not None:
            sizes = common.of({batch.name for batch in batches}).sizes(one_output)
        group = Group.filled(
            batches,
            one_output,
            lambda tokens, is_first: fill(tokens, positions, sizes[0 if is_first else 1]),
        )
        self.num_rows += sum(batch.tokens.num_tokens for batch in batches)
        self.num_filled += group.tokens.num_tokens
        return group

    def _ready(self, key: Key, parts: list[list[Group]], step: int) -> Captured | None:
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
            self._captured[key] = self._capture(key, parts, plan)
        except RuntimeError as error:
            self._is_possible = False
            self.log(
                f"the step runs launch by launch, which is slower: {CAPTURE_FAILED}"
                f" ({error_chain(error)}); what that leaves in the GPU's allocator goes with the"
                " process: continue from the saved state with --resume --no-graphs"
            )
        return self._captured.get(key)

    def _capture(self, key: Key, parts: list[list[Group]], plan: Plan) -> Captured:
        groups = [group for part in parts for group in part]
        inputs = [StaticGroup(group, plan.num_numbers, self.device) for group in groups]
        for static, group in zip(inputs, groups, strict=True):
            static.load(group, (self.config.seed, 0), [float(self.num_steps)] * plan.num_numbers)
        graph, names = self._new_graph(self.device), []

        def work() -> Tensor:
            read, rngs, numbers = zip(*(static.read() for static in inputs), strict=True)
            rows = iter(read)
            parts_read = [[next(rows) for _ in part] for part in parts]
            terms = self.step.differentiate(parts_read, rngs[0])
            gradients = self.passes.gradients(parts_read[0])
            with self.clock("optimiser"):
                norm = self.update.run(plan, numbers[0], gradients, key.beta, *self.passes.copies())
            terms["gradient_norm"] = norm
            names.extend(terms)
            return torch.stack([value.to(torch.float32) for value in terms.values()])

        values = graph.capture(work)
        self.passes.mark_fresh()
        self.seconds, self.bytes = self.seconds + graph.seconds, self.bytes + graph.bytes
        frozen = self.update.frozen(plan)
        return Captured(graph, inputs, tuple(names), values, plan, self.passes.capacity(), frozen)
