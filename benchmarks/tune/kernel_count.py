"""The kernels of one captured round, stage by stage, counted without a GPU.

    python -m benchmarks.tune.kernel_count [--model minilm] [--update joint] [--precision fp32] ...

The captured step runs on the pretended GPU with shapes alone, and ``kernel_table`` says how many
kernels each op is there. Nothing is computed, so it takes seconds for any model. Batches have 8
examples a task, as long as the real data's; without ``--model`` and ``--update`` all are counted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.harness.rounds import RUN_ROUNDS, Rounds, build_model, sbrrt, training_parts
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.harness.text import markdown_table
from benchmarks.pretended_gpu import PretendedGpu, name_of
from benchmarks.tune.kernel_table import num_kernels
from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.training.cost.profile import STAGES, NoClock
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.written_out_pass import WrittenOut

UPDATES = ("per_task", "joint")
READING, TERMS = "data", "terms"
ORDER = (*STAGES[:3], "report", *STAGES[3:], TERMS)
MOST_ROUNDS = 8  # until all of a round is captured


class RoundCount(NamedTuple):
    """What a captured round launches.

    Attributes:
        kernels: in the graphs, by stage; ``data`` reads the static inputs, ``terms`` gathers what
            is reported. ops: the same in ops of the dispatcher that are no views.
        steps: optimiser steps, and so graphs, of the round.
        copies: to the device, outside of the graphs. others: kernels outside of the graphs.
    """

    kernels: Counter[str]
    ops: Counter[str]
    steps: int
    copies: int
    others: int


class Counts(NoClock):
    """Counts what reaches the device; as the step's clock it learns which stage that is in."""

    def __init__(self):
        self.stage = TERMS
        self.is_captured = False
        self.clear()

    def clear(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.steps = self.copies = self.others = 0
        self._zeros: dict[int, tuple[str, Tensor]] = {}  # kept, so that no address is used twice

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer, self.stage = self.stage, stage
        try:
            yield
        finally:
            # What lies between a step's first and last stage is none of theirs.
            self.stage = TERMS if outer == READING else outer

    @contextmanager
    def captured(self) -> Iterator[None]:
        self.stage, self.is_captured = READING, True
        self.steps += 1
        try:
            yield
        finally:
            self.stage, self.is_captured = TERMS, False

    def observe(self, op: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object) -> None:
        """What ``PretendedGpu.observers`` are called with."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(not x.is_meta for x in tensors):
            self.copies += 1
            return
        kernels = num_kernels(op, args, kwargs, result)
        if not self.is_captured:
            self.others += kernels
            return
        self.kernels[self.stage] += kernels
        self.ops[self.stage] += not op.is_view
        self._forget_shapes(op, tensors, result)

    def _forget_shapes(self, op, tensors: list[Tensor], result: object) -> None:
        """Products with forward mode's zero tangents: torch computes their shape, on no device."""
        if op.namespace == "prims":
            for x in tensors:
                stage, _ = self._zeros.pop(x.untyped_storage()._cdata, (None, None))
                if stage:
                    self.kernels[stage] -= 1
        elif name_of(op) == "zeros":
            self._zeros[result.untyped_storage()._cdata] = self.stage, result


class CountedGraph:
    """Takes the place of ``training.cuda_graph.CudaGraph``: counts what it would hold."""

    seconds, bytes = 0.0, 0

    def __init__(self, counts: Counts):
        self._counts = counts

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        with self._counts.captured():
            return work()

    def replay(self) -> None:
        pass


def count_round(
    shape: BertConfig, config: RunConfig, batches: list[TaskBatch], report: bool = False
) -> RoundCount:
    """The ``RoundCount`` of one round of a model of some shape."""
    counts = Counts()
    with PretendedGpu(has_values=False) as gpu:
        step = build(shape, config, counts)
        step.clock = counts
        gpu.observers.append(counts.observe)
        with gpu.no_waits():
            rounds = (_count(step, counts, batches, i, report) for i in range(MOST_ROUNDS))
            captured = next(count for count in rounds if count.steps)
            replayed = _count(step, counts, batches, MOST_ROUNDS, report)
    steps = 1 if step.is_joint else len(batches)
    assert (captured.steps, replayed.steps) == (steps, 0), "not all was captured at once"
    return captured._replace(copies=replayed.copies, others=replayed.others)


def _count(
    step: CapturedStep, counts: Counts, batches: list[TaskBatch], index: int, report: bool
) -> RoundCount:
    counts.clear()
    step.round(batches, index, report)
    return RoundCount(counts.kernels, counts.ops, counts.steps, counts.copies, counts.others)


def build(shape: BertConfig, config: RunConfig, counts: Counts) -> CapturedStep:
    """The captured step with a model without values."""

    def fail(line: str) -> None:
        raise AssertionError(line)

    with torch.device("meta"):
        encoder = MiniBert(shape, pooling="mean")
    parts = training_parts(build_model(encoder, config, torch.device("cuda"), 0.1), config)
    step = Step(WrittenOut, *parts, config, RUN_ROUNDS)
    return CapturedStep(step, fail, lambda device: CountedGraph(counts))


def table(counts: dict[str, RoundCount]) -> list[str]:
    """Markdown: a row for each stage, a column for each round."""
    columns = counts.values()
    stages = {stage: [count.kernels[stage] for count in columns] for stage in ORDER}
    rows = {stage: numbers for stage, numbers in stages.items() if any(numbers)} | {
        "kernels": [sum(count.kernels.values()) for count in columns],
        "ops that are no views": [sum(count.ops.values()) for count in columns],
        "graphs": [count.steps for count in columns],
        "copies to the device": [count.copies for count in columns],
        "kernels outside": [count.others for count in columns],
    }
    cells = [[name, *map(str, numbers)] for name, numbers in rows.items()]
    return markdown_table(["stage", *counts], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--update", choices=UPDATES, nargs="+", default=list(UPDATES))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--report", action="store_true", help="a round that reports on SMART")
    args = parser.parse_args()
    counts = {}
    for model in args.model:
        batches = Rounds(Settings(torch.device("cpu"), quick=True), Case(model, "round"))[0]
        for update in args.update:
            config = sbrrt(update, args.precision)
            name = f"{model}, {update.replace('_', ' ')}"
            counts[name] = count_round(MODELS[model], config, batches, args.report)
    print(*table(counts), sep="\n")


if __name__ == "__main__":
    main()
