"""Splits with made-up outputs, as if a model had been evaluated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.model.heads import predictions
from sbrrt_fast.training.scores.scored import ScoredTask

TASKS = {
    "classes": replace(BUILTIN_TASKS["sst"], num_classes=4),
    "two classes": BUILTIN_TASKS["cfimdb"],
    "binary": BUILTIN_TASKS["para"],
    "cosine": BUILTIN_TASKS["sts"],
    "regression": replace(BUILTIN_TASKS["sts"], head="regression"),
}


def tokenized(config: TaskConfig, labels: Tensor | None, num_rows: int) -> TokenizedTask:
    """Rows of one to five tokens a sequence, called r0, r1 and so on."""
    lengths = torch.arange(num_rows * config.sequences_per_example) % 5 + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    num_tokens = int(starts[-1])
    texts = [tuple(f"{column} {i}" for column in config.text_columns) for i in range(num_rows)]
    return TokenizedTask(
        name="task",
        config=config,
        split="dev",
        ids=[f"r{i}" for i in range(num_rows)],
        labels=labels,
        tokens=torch.zeros(num_tokens, dtype=torch.int32),
        token_types=torch.zeros(num_tokens, dtype=torch.int8),
        special=torch.zeros(num_tokens, dtype=torch.bool),
        starts=starts,
        num_truncated=0,
        texts=texts,
    )


def scored(config: TaskConfig, outputs: Tensor, labels: Tensor) -> ScoredTask:
    """A split of these labels and outputs; the units of outputs are those of labels."""
    task = tokenized(config, labels.float(), len(labels))
    return ScoredTask(task, outputs.float(), predictions(config, outputs))


def random_scored(kind: str, num_rows: int, metrics: tuple[str, ...] = ()) -> ScoredTask:
    """Outputs that know something of the labels, in tenths, so that some are equal."""
    config = replace(TASKS[kind], metrics=metrics)
    noise = torch.randn(num_rows, max(config.num_labels, 1))
    if config.is_regression:
        labels = torch.randint(51, (num_rows,)) / 10
        return scored(config, _tenths(labels + noise[:, 0]), labels)
    labels = torch.randint(config.num_labels, (num_rows,))
    outputs = _tenths(noise + torch.nn.functional.one_hot(labels, config.num_labels))
    if config.head == "binary":
        outputs = outputs[:, 1] - outputs[:, 0]
    return scored(config, outputs, labels)


def _tenths(values: Tensor) -> Tensor:
    return (values * 10).round() / 10
