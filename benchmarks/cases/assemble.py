"""Putting a round's batches together on the host, against padding lists of rows.

Ours slices pre-tokenised storage; the peer collates as a DataLoader does, without its worker
processes: a tensor per row, padded to the longest.
"""

from __future__ import annotations

import itertools

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.check import WrongResult
from benchmarks.harness.lengths import TASKS
from benchmarks.harness.shapes import Case
from benchmarks.harness.stored import stored_task
from sbrrt_fast.data.assemble import assemble, labels_of
from sbrrt_fast.data.store import TokenizedTask

BATCH_SIZE, NUM_ROUNDS, NUM_STORED = 8, 50, 2000


def ours(tasks: list[TokenizedTask], examples: torch.Tensor) -> list[tuple]:
    row, batches = 0, []
    for task in tasks:
        tokens = assemble(task, examples, row)
        row += tokens.num_sequences
        batches.append((tokens, labels_of(task, examples)))
    return batches


def collate(rows: list[list[torch.Tensor]], labels: list[list], examples: list[int]) -> list[tuple]:
    """Ids, mask and labels of each task."""
    batches = []
    for sequences, answers in zip(rows, labels, strict=True):
        each = len(sequences) // len(answers)
        sequences_of_batch = [sequences[i * each + j] for i in examples for j in range(each)]
        mask = [torch.ones_like(x) for x in sequences_of_batch]
        padded = [pad_sequence(x, batch_first=True) for x in (sequences_of_batch, mask)]
        batches.append((*padded, torch.tensor([answers[i] for i in examples])))
    return batches


class Assemble(Benchmark):
    name, graph = "assemble", False
    variants = ("ours", "pad_sequence")

    def cases(self):
        yield Case("any model", "round", "", "data")

    def calls(self, case: Case, variant: str, num_sets: int):
        tasks = [stored_task(name, NUM_STORED) for name in TASKS]
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(NUM_STORED, (NUM_ROUNDS, BATCH_SIZE), generator=generator)
        self._check(tasks, drawn[0])
        if variant == "ours":
            rounds = itertools.cycle(drawn)
            return [lambda: ours(tasks, next(rounds))]
        rows = [[x.long() for x in t.tokens.split(t.lengths.tolist())] for t in tasks]
        labels = [t.labels.tolist() for t in tasks]
        rounds = itertools.cycle(drawn.tolist())
        return [lambda: collate(rows, labels, next(rounds))]

    def _check(self, tasks: list[TokenizedTask], examples: torch.Tensor) -> None:
        rows = [[x.long() for x in t.tokens.split(t.lengths.tolist())] for t in tasks]
        padded = collate(rows, [t.labels.tolist() for t in tasks], examples.tolist())
        for (tokens, labels), (ids, mask, answers) in zip(
            ours(tasks, examples), padded, strict=True
        ):
            same = torch.equal(tokens.input_ids, ids[mask.bool()]) and torch.equal(labels, answers)
            if not same:
                raise WrongResult(f"{self.name}: other tokens or labels than the rows have")
