"""The rules that the labels and files of a task's record must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sbrrt_fast.messages import shown
from sbrrt_fast.ranges import FLOAT32, Rule, fraction_rules, is_float32, problems

if TYPE_CHECKING:
    from sbrrt_fast.data.task import TaskConfig

_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_FOLD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


class Share(NamedTuple):
    """A part of the training rows in a random order: ``start`` to ``stop``, from 0 to 1."""

    start: float
    stop: float


def share_of(files: str | tuple[str, ...]) -> Share | None:
    """The part of the training rows that a split is, or None where it has files of its own.

    ``10%`` is a tenth of them; ``2/5`` the second of five parts.
    """
    if not isinstance(files, str):
        return None
    if match := _SHARE.fullmatch(files):
        return Share(0.0, float(match[1]) / 100)
    if match := _FOLD.fullmatch(files):
        fold, num_folds = int(match[1]), max(int(match[2]), 1)
        return Share((fold - 1) / num_folds, fold / num_folds)
    return None


def label_problems(task: TaskConfig) -> Iterator[str]:
    labels, weights = task.labels, task.class_weights
    if task.is_regression:
        for field in ("labels", "class_weights", "label_smoothing"):
            if getattr(task, field):
                yield f"{field}: head '{task.head}' predicts values; only classes have any"
        return
    if len(set(labels)) < len(labels) or any(not x.strip() or x != x.strip() for x in labels):
        yield (
            "labels: needs different names with visible characters and no space around them, got "
            f"{shown(list(labels))}"
        )
    expected = task.num_labels or max(len(labels), 2)
    if labels and len(labels) != expected:
        yield f"labels: {len(labels)} names for head '{task.head}' with {expected} classes"
    if isinstance(weights, tuple) and (task.num_labels or labels) and len(weights) != expected:
        yield f"class_weights: {len(weights)} weights for {expected} classes"


def file_problems(task: TaskConfig) -> Iterator[str]:
    yield from problems(_rules(task))
    for split, files in task.files.items():
        paths = (files,) if isinstance(files, str) else files
        if not paths or not all(paths):
            yield f"files.{split}: names no file"
        if share := share_of(files):
            yield from _share_problems(task, split, share)
    if task.format == "dataset" and not task.dataset:
        yield "dataset: format 'dataset' needs its name on the hub or its folder"
    if task.dataset and task.format not in ("auto", "dataset"):
        yield f"format: a dataset is not read as '{task.format}'; leave the format out"
    if task.dataset_config and not task.dataset:
        yield "dataset_config: there is no dataset; name it in dataset"


def _share_problems(task: TaskConfig, split: str, share: Share) -> Iterator[str]:
    text = task.files[split]
    if split != "dev":
        yield (
            f"files.{split}: '{text}' is a part of the training rows, which only dev can be; write "
            f"'./{text}' for a file of that name"
        )
    elif "train" not in task.files:
        yield f"files.dev: '{text}' is a part of the training rows, and there is no files.train"
    elif not 0 <= share.start < share.stop <= 1 or share == (0, 1):
        yield f"files.dev: '{text}' must leave rows to both, such as '10%' or '2/5'"


def _rules(task: TaskConfig) -> Iterator[Rule]:
    yield "max_rows", task.max_rows, task.max_rows is None or task.max_rows >= 1, "at least 1"
    yield "split_seed", task.split_seed, 0 <= task.split_seed < 2**63, "at least 0 and below 2**63"
    yield from fraction_rules("label_smoothing", task.label_smoothing, task.label_smoothing)
    if isinstance(weights := task.class_weights, tuple):
        yield "class_weights", weights, all(0 <= w < math.inf for w in weights), "at least 0"
        yield "class_weights", weights, any(weights), "above 0 for a class or more"
        yield "class_weights", weights, all(map(is_float32, weights)), FLOAT32
