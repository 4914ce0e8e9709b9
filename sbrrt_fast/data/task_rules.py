"""The rules that a task's name and record must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sbrrt_fast.data.task import (
    LOSS_OF_HEAD,
    METRICS_OF_VALUES,
    OVERALL,
    SPLITS,
    TaskConfig,
    metrics_of,
)
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.ranges import FLOAT32, Rule, float32, fraction_rules, is_float32, problems

_MOST_CLASSES = 1_000_000
_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
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


def validate_task(name: str, task: TaskConfig) -> None:
    """Raises ConfigError naming ``tasks.<name>.<field>`` when fields do not fit together."""
    check_task_name(name)
    for reason in _problems(task):
        raise ConfigError(f"tasks.{name}.{reason}")


def check_task_name(name: str) -> None:
    """Raises ConfigError where a task cannot be called ``name``."""
    if not _TASK_NAME.fullmatch(name):
        raise ConfigError(
            f"tasks: '{shown(name)}' is no task name; use letters, digits, '_' and '-', at most 64"
        )
    if name == OVERALL:
        raise ConfigError(
            f"tasks: a task cannot be called '{OVERALL}', where the mean score stands; choose "
            "another name"
        )


def check_task_names(names: Iterable[str]) -> None:
    """Raises ConfigError where two tasks would have the same flags on the command line."""
    flags: dict[str, str] = {}
    for name in names:
        check_task_name(name)
        other = flags.setdefault(name.replace("_", "-"), name)
        if other != name:
            raise ConfigError(
                f"tasks: '{other}' and '{name}' differ in '-' and '_' alone, which flags do not "
                "tell apart; rename one"
            )


def _problems(task: TaskConfig) -> Iterator[str]:
    columns = shown(task.text_columns)
    if task.encoding == "single" and len(task.text_columns) != 1:
        yield f"text_columns: encoding 'single' needs one column, got {columns}"
    if task.encoding != "single" and len(task.text_columns) != 2:
        yield f"text_columns: encoding '{task.encoding}' needs two, got {columns}"
    if task.head == "cosine" and task.encoding != "siamese":
        yield (
            f"encoding: head 'cosine' compares two sentences; use 'siamese', not '{task.encoding}'"
        )
    is_for_classes = task.head == "classes" or task.num_classes == 0
    if not is_for_classes or task.num_classes == 1 or task.num_classes < 0:
        yield (
            f"num_classes: head '{task.head}' got {task.num_classes}; only 'classes' takes it, >= 2"
        )
    if task.is_regression and not task.label_range[0] < task.label_range[1]:
        yield f"label_range: needs low < high, got {task.label_range}"
    if task.head == "cosine" and not task.label_range[1] > 0:
        yield (
            "label_range: head 'cosine' gives its highest label to equal sentences, which must "
            f"be above 0, got {task.label_range}"
        )
    if task.loss_name != LOSS_OF_HEAD[task.head]:
        yield f"loss: '{task.loss}' does not fit head '{task.head}'; use 'auto'"
    if task.metric_name not in metrics_of(task.head):
        yield f"metric: {_unfit(task.metric_name, task.head)}"
    if unfit := [name for name in task.metrics if name not in metrics_of(task.head)]:
        yield f"metrics: {_unfit(unfit[0], task.head)}"
    yield from problems(_general_rules(task))
    yield from _label_problems(task)
    yield from _file_problems(task)


def _general_rules(task: TaskConfig) -> Iterator[Rule]:
    yield "files", task.files, set(task.files) <= set(SPLITS), f"files of {SPLITS}"
    expected = f"at most {_MOST_CLASSES:,}"
    yield "num_classes", task.num_classes, task.num_classes <= _MOST_CLASSES, expected
    yield "weight", task.weight, 0 <= task.weight < math.inf, "at least 0"
    yield "weight", task.weight, is_float32(task.weight), FLOAT32
    if task.is_regression:
        low, high = labels = task.label_range
        are_held = is_float32(low) and is_float32(high)
        yield "label_range", labels, are_held, f"two numbers {FLOAT32}"
        differ = float32(low) < float32(high)
        yield "label_range", labels, differ, "two numbers that are still different as float32"


def _unfit(metric: str, head: str) -> str:
    heads = "cosine or regression" if metric in METRICS_OF_VALUES else "classes or binary"
    return f"'{metric}' needs a {heads} head, not '{head}'"


def _label_problems(task: TaskConfig) -> Iterator[str]:
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


def _file_problems(task: TaskConfig) -> Iterator[str]:
    yield from problems(_file_rules(task))
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


def _file_rules(task: TaskConfig) -> Iterator[Rule]:
    yield "max_rows", task.max_rows, task.max_rows is None or task.max_rows >= 1, "at least 1"
    count = task.train_rows
    yield "train_rows", count, count is None or count >= 1, "at least 1"
    yield from fraction_rules("label_noise", task.label_noise, task.label_noise)
    yield "split_seed", task.split_seed, 0 <= task.split_seed < 2**63, "at least 0 and below 2**63"
    yield from fraction_rules("label_smoothing", task.label_smoothing, task.label_smoothing)
    if isinstance(weights := task.class_weights, tuple):
        yield "class_weights", weights, all(0 <= w < math.inf for w in weights), "at least 0"
        yield "class_weights", weights, any(weights), "above 0 for a class or more"
        yield "class_weights", weights, all(map(is_float32, weights)), FLOAT32
