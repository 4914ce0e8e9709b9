"""The rules that the values of a run configuration must keep."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbrrt_fast.data.task_rules import check_task_names, validate_task
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.ranges import FLOAT32, Rule, check, fraction_rules, is_float32
from sbrrt_fast.settings import (
    AverageConfig,
    BregmanConfig,
    LoraConfig,
    OptimizerConfig,
    RunSettings,
)
from sbrrt_fast.smart.presets import resolve

_LONGEST = 4096  # of a text, like Linux's longest path
_REPORTER = re.compile(r"wandb|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_LORA_TARGETS = ("query", "key", "value", "dense", "word_embeddings")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")

# Numbers that the step multiplies or divides by in float32, besides those of ``smart``.
_COMPUTED_WITH = (
    "bregman.weight",
    "lora.alpha",
    "optimizer.learning_rate",
    "optimizer.head_learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.eps",
)


def validate(config: RunSettings) -> None:
    """Raises ConfigError naming the dotted key of the first value that makes no sense.

    Other code takes a configuration's values to be in their ranges.
    """
    check_task_names(config.tasks)
    for name, task in config.tasks.items():
        validate_task(name, task)
    check_texts(config)
    check(_rules(config))
    resolve(config.smart)


def check_texts(values: Any) -> None:
    """Raises ConfigError for the first text in a configuration or its dicts that cannot be one."""
    for key, text in _texts(values):
        if problem := _problem_of(key, text):
            raise ConfigError(f"{key}: {problem}, got {shown(repr(text))}")


def bregman_rules(bregman: BregmanConfig) -> Iterator[Rule]:
    """The rules of the teacher's settings."""
    yield "bregman.weight", bregman.weight, 0 <= bregman.weight < math.inf, "at least 0"
    yield "bregman.beta", bregman.beta, 0 <= bregman.beta <= 1, "from 0 to 1"


def _rules(c: RunSettings) -> Iterator[Rule]:
    at_least_one = "at least 1"
    yield "rounds", c.rounds, c.rounds is None or c.rounds >= 1, at_least_one
    yield "epochs", c.epochs, c.epochs >= 1, at_least_one
    yield "seed", c.seed, 0 <= c.seed < 2**63, "at least 0 and below 2**63"
    yield "tasks", c.tasks, len(c.tasks) > 0, "at least one task"
    yield "tasks", list(c.tasks), len(c.trained_tasks) > 0, "a task or more with train: true"
    for name in ("hidden_dropout", "attention_dropout"):
        if (p := getattr(c.model, name)) is not None:
            yield from fraction_rules(f"model.{name}", p, p)
    shortest, longest = max(t.min_length for t in c.tasks.values()), c.model.max_length
    yield "model.max_length", longest, longest >= shortest, f"at least {shortest}"
    yield from bregman_rules(c.bregman)
    yield from _lora_rules(c.lora, c.mode)
    yield from _optimizer_rules(c.optimizer, c.mode)
    yield from _average_rules(c.average, c.bregman.weight)
    yield from _surgery_rules(c)
    for key in _COMPUTED_WITH:
        section, name = key.split(".")
        value = getattr(getattr(c, section), name)
        yield key, value, value is None or is_float32(value), FLOAT32
    yield "token_cache", c.token_cache, c.token_cache != "", "'auto', 'none' or a folder"
    are_names = all(map(_REPORTER.fullmatch, c.report_to))
    yield "report_to", c.report_to, are_names, "'wandb' or 'module:Class', one or several"
    are_different = len(set(c.report_to)) == len(c.report_to)
    yield "report_to", c.report_to, are_different, "names that are each given once"
    yield "round.batch_size", c.round.batch_size, c.round.batch_size >= 1, at_least_one
    yield "round.accumulate", c.round.accumulate, c.round.accumulate >= 1, at_least_one
    task, expected = c.round.epoch_task, f"in {shown(list(c.trained_tasks), 200)}"
    yield "round.epoch_task", task, task is None or task in c.trained_tasks, expected
    for name, task in c.trained_tasks.items():
        is_fine = c.round.task_weights == "fixed" or task.weight > 0
        expected = "above 0 with round.task_weights 'uncertainty', which divides by it"
        yield f"tasks.{name}.weight", task.weight, is_fine, expected
    yield "log.every", c.log.every, c.log.every >= 1, at_least_one
    for name in ("evaluate_every", "dev_rows", "keep_best", "keep_last"):
        count = getattr(c.log, name)
        yield f"log.{name}", count, count is None or count >= 1, at_least_one
    patience, min_delta = c.early_stopping.patience, c.early_stopping.min_delta
    is_fine = patience is None or patience >= 1
    yield "early_stopping.patience", patience, is_fine, at_least_one
    yield "early_stopping.min_delta", min_delta, 0 <= min_delta < math.inf, "at least 0"
    yield "rank_timeout", c.rank_timeout, 5 <= c.rank_timeout < math.inf, "at least 5 (seconds)"
    yield "extended", c.extended, all(n >= 1 for n in c.extended), at_least_one


def _lora_rules(lora: LoraConfig, mode: str) -> Iterator[Rule]:
    yield "lora.rank", lora.rank, lora.rank >= 0, "at least 0"
    is_trained = lora.rank == 0 or mode == "finetune"
    yield "lora.rank", lora.rank, is_trained, "0 with mode 'pretrain', which trains the heads alone"
    yield "lora.alpha", lora.alpha, 0 < lora.alpha < math.inf, "above 0"
    yield from fraction_rules("lora.dropout", lora.dropout, lora.dropout)
    are_names = len(lora.targets) > 0 and set(lora.targets) <= set(_LORA_TARGETS)
    yield "lora.targets", lora.targets, are_names, f"one or several of {', '.join(_LORA_TARGETS)}"
    are_different = len(set(lora.targets)) == len(lora.targets)
    yield "lora.targets", lora.targets, are_different, "names that are each given once"


def _optimizer_rules(o: OptimizerConfig, mode: str) -> Iterator[Rule]:
    for name in ("learning_rate", "head_learning_rate", "eps"):
        value = getattr(o, name)
        yield f"optimizer.{name}", value, value is None or 0 < value < math.inf, "above 0"
    for name in ("weight_decay", "clip_norm"):
        value = getattr(o, name)
        yield f"optimizer.{name}", value, 0 <= value < math.inf, "at least 0"
    yield from fraction_rules("optimizer.betas", o.betas, *o.betas)
    yield "optimizer.warmup", o.warmup, 0 <= o.warmup <= 1, "from 0 to 1"
    decay = o.layer_decay
    yield "optimizer.layer_decay", decay, 0 < decay <= 1, "above 0 and at most 1"
    for name in ("frozen_layers", "unfreeze_every"):
        key, count = f"optimizer.{name}", getattr(o, name)
        yield key, count, count >= 0, "at least 0"
        is_fine = count == 0 or mode == "finetune"
        yield key, count, is_fine, "0 with mode 'pretrain', in which no layer trains"


def _average_rules(a: AverageConfig, teacher_weight: float) -> Iterator[Rule]:
    has_it = a.weights != "teacher" or teacher_weight > 0
    yield "average.weights", a.weights, has_it, "none or swa with a bregman.weight of 0, no teacher"
    yield "average.start", a.start, 0 <= a.start <= 1, "from 0 to 1"
    yield "average.every", a.every, a.every >= 1, "at least 1"


def _surgery_rules(c: RunSettings) -> Iterator[Rule]:
    """PCGrad needs several tasks' gradients of shared weights in one update."""
    key, kind = "optimizer.surgery", c.optimizer.surgery
    may_be = [
        (c.round.update == "joint", "round.update 'per_task' (set round.update to 'joint')"),
        (len(c.trained_tasks) > 1, "one task, which no other conflicts with"),
        (c.mode == "finetune", "mode 'pretrain', where tasks share no trained weights"),
        (c.optimizer.frozen_layers == 0, "frozen layers, whose gradients it would compare"),
        (c.optimizer.unfreeze_every == 0, "layers that are not trained yet"),
    ]
    for is_fine, where in may_be:
        yield key, kind, kind == "none" or is_fine, f"'none' with {where}"


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of all strings and paths."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, str | Path):
        yield key, str(value)
    elif isinstance(value, Mapping | tuple | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            yield from _texts(inner, f"{key}.{name}" if key else str(name))


def _problem_of(key: str, text: str) -> str | None:
    """Why a text can be no name, path or column."""
    if len(text) > _LONGEST:
        return f"must have at most {_LONGEST:,} characters"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "must be UTF-8"
    may_have = "\t" if key.endswith(".prediction_header") else ""  # as the course's have
    if set(_CONTROL.findall(text)) - set(may_have):
        return 'must have no control characters (in YAML, "\\t" and "\\n" make some)'
    return None
