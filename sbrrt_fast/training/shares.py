"""Which of a round's examples each rank computes.

All ranks draw the same round and deal it alike, so each knows what the others compute. A rank's
share is dealt into parts, whose gradients it adds up, as if each were another rank's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.assemble import assemble, labels_of, sequences_of
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.training.ranks.ranks import Ranks
from sbrrt_fast.training.round_robin import Batches
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.work import Common, Work

Places = NDArray[np.int64]  # of examples in their batch, ascending


def deal(lengths: Sequence[NDArray[np.int64]], num_parts: int) -> list[list[Places]]:
    """Deals the examples of a step's batches to parts, so that these have about as many tokens.

    How many examples of a batch a part gets depends on the batches' sizes alone, and differs by one
    at most. The longest come first, each to the part with the fewest tokens that may have more.

    Args:
        lengths: of each batch, tokens by example.

    Returns:
        By part, of each batch the places of its examples.
    """
    parts: list[list[Places]] = [[] for _ in range(num_parts)]
    tokens, first = [0] * num_parts, 0
    for of_batch in lengths:
        left = _counts(len(of_batch), num_parts, first)
        first += len(of_batch) % num_parts  # who has one more goes round
        places: list[list[int]] = [[] for _ in range(num_parts)]
        for place in np.argsort(-of_batch, kind="stable").tolist():
            part = min((p for p in range(num_parts) if left[p]), key=tokens.__getitem__)
            places[part].append(place)
            tokens[part] += int(of_batch[place])
            left[part] -= 1
        for part, own in zip(parts, places, strict=True):
            part.append(np.array(sorted(own), dtype=np.int64))
    return parts


def _counts(num_examples: int, num_parts: int, first: int) -> list[int]:
    """How many examples each part gets, one more those from ``first`` on."""
    each, more = divmod(num_examples, num_parts)
    return [each + ((part - first) % num_parts < more) for part in range(num_parts)]


@dataclass(frozen=True)
class _Batch:
    """One task's batch of a round, wherever it is computed.

    Attributes:
        task: its rows. examples: which. first_row: of its first sequence in the round.
    """

    task: TokenizedTask
    examples: NDArray[np.int64]
    first_row: int

    @cached_property
    def sequences(self) -> list[NDArray[np.int32]]:
        """Ids of each sequence, in the memory of the task."""
        starts, tokens = self.task.arrays["starts"], self.task.arrays["tokens"]
        return [tokens[starts[i] : starts[i + 1]] for i in sequences_of(self.task, self.examples)]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        lengths = np.array([len(ids) for ids in self.sequences])
        return lengths.reshape(len(self.examples), -1).sum(1)

    def share(self, places: Places) -> TaskBatch:
        """These examples of it. A part without any gets the shortest, with a share of 0: so all
        parts of a step are alike, and make the same gradients."""
        share = len(places) / len(self.examples)
        if not len(places):
            places = self.lengths.argmin(keepdims=True)
        examples = self.examples[places]
        tokens = assemble(self.task, examples, self.first_row, places)
        return TaskBatch(self.task.name, tokens, labels_of(self.task, examples), share)


class RoundShares:
    """A run's rounds, as one rank computes them.

    Args:
        tasks: the training splits by name.
        config: the run's. ranks: the processes of the run.
    """

    def __init__(self, tasks: Mapping[str, TokenizedTask], config: RunConfig, ranks: Ranks):
        self.tasks, self.ranks, self.config = tasks, ranks, config
        self.num_parts = ranks.size * config.round.accumulate

    def works(self, batches: Batches) -> list[Work]:
        """A round's optimiser steps, in the host's memory, rows numbered through the round."""
        placed = self._placed(batches)
        steps = [placed] if self.config.round.update == "joint" else [[batch] for batch in placed]
        return [self._work(step) for step in steps]

    def _placed(self, batches: Batches) -> list[_Batch]:
        tasks = [self.tasks[name] for name, _ in batches]
        counts = (
            len(examples) * task.config.sequences_per_example
            for task, (_, examples) in zip(tasks, batches, strict=True)
        )
        rows = accumulate(counts, initial=0)
        return [
            _Batch(task, examples, row)
            for task, (_, examples), row in zip(tasks, batches, rows, strict=False)
        ]

    def _work(self, step: list[_Batch]) -> Work:
        if self.num_parts == 1:
            every = [np.arange(len(batch.examples)) for batch in step]
            return Work((self._part(step, every),))
        dealt = deal([batch.lengths for batch in step], self.num_parts)
        first = self.ranks.rank * self.config.round.accumulate
        own = dealt[first : first + self.config.round.accumulate]
        return Work(tuple(self._part(step, part) for part in own), self._common(step, dealt))

    def _part(self, step: list[_Batch], part: list[Places]) -> list[TaskBatch]:
        batches = [batch.share(places) for batch, places in zip(step, part, strict=True)]
        if self.config.layout != "padded":
            return batches
        return [
            TaskBatch(batch.name, batch.tokens.padded(), batch.labels, batch.share)
            for batch in batches
        ]

    def _common(self, step: list[_Batch], dealt: list[list[Places]]) -> Common:
        sequences = [ids for batch in step for ids in batch.sequences]
        words = np.unique(np.concatenate(sequences)).astype(np.int64)
        return Common(
            tuple(_num_tokens(step, part) for part in dealt),
            max(map(len, sequences)),
            torch.from_numpy(words),
        )


def _num_tokens(step: list[_Batch], part: list[Places]) -> dict[str, int]:
    """A part's tokens by task, as ``_Batch.share`` and the merging of one task's batches count."""
    counts: dict[str, list[int]] = {}
    for batch, places in zip(step, part, strict=True):
        counts.setdefault(batch.task.name, []).append(int(batch.lengths[places].sum()))
    shortest = {batch.task.name: int(batch.lengths.min()) for batch in reversed(step)}
    return {name: sum(of_task) or shortest[name] for name, of_task in counts.items()}
