"""What a typical round costs by arithmetic, without running it."""

from __future__ import annotations

from functools import cache

import torch

from benchmarks.harness.lengths import TASKS
from benchmarks.harness.rounds import SBRRT, build_model, sbrrt
from benchmarks.harness.shapes import MODELS, Case, examples_of, task_lengths
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.cost.floor import RoundCost, round_cost


def empty_model(name: str) -> MultiTaskModel:
    """The model of a run, heads included, without values; ``name`` is one of ``MODELS``."""
    with torch.device("meta"):
        encoder = MiniBert(MODELS[name], pooling="mean")
    return build_model(encoder, SBRRT, torch.device("meta"), 0.1)


@cache
def num_parameters(model: str) -> int:
    """That a run trains, heads included."""
    return sum(p.numel() for p in empty_model(model).parameters() if p.requires_grad)


def typical_cost(case: Case, update: str, precision: str) -> RoundCost:
    """Of a round with the lengths of the real data."""
    counts = {task: sum(task_lengths(task, examples_of(case.batch))) for task in TASKS}
    config = sbrrt(update, precision)
    return round_cost(case.config, config, counts, num_parameters(case.model))
