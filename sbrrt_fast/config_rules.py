"""The rules that the values of a run configuration must keep."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.task import Split, check_task_names
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

SPLITS = get_args(Split)
_LONGEST = 4096  # of a text, like Linux's longest path
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_RANGE = "of a size from 1.2e-38 to 3.4e+38 to be held by float32 (smaller ones are 0 there)"
# Numbers that the step multiplies or divides by in float32.
_COMPUTED_WITH = (
    "smart.weight",
    "smart.sigma",
    "smart.step_size",
    "smart.radius",
    "bregman.weight",
    "optimizer.learning_rate",
    "optimizer.head_learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
)


def validate(config: RunConfig) -> None:
    """Raises ConfigError naming the dotted key of the first value that makes no sense."""
    check_task_names(config.tasks)
    for name, task in config.tasks.items():
        task.validate(name)
    for key, text in _texts(config):
        if problem := _problem_of(key, text):
            raise ConfigError(f"{key}: {problem}, got {shown(repr(text))}")
    for rules in (_rules, _float32_rules):
        for key, is_fine, expected in rules(config):
            if not is_fine:
                value = shown(repr(_value_at(config, key)))
                raise ConfigError(f"{key}: must be {expected}, got {value}")


def _rules(c: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """Triples of dotted key, whether its value is fine, and what is expected."""
    at_least_one = "at least 1"
    yield "rounds", c.rounds is None or c.rounds >= 1, at_least_one
    yield "epochs", c.epochs >= 1, at_least_one
    yield "seed", 0 <= c.seed < 2**63, "at least 0 and below 2**63"
    yield "tasks", len(c.tasks) > 0, "at least one task"
    for name, task in c.tasks.items():
        yield f"tasks.{name}.weight", 0 <= task.weight < math.inf, "at least 0"
        yield f"tasks.{name}.files", set(task.files) <= set(SPLITS), f"files of {SPLITS}"
    for key in ("hidden_dropout", "attention_dropout"):
        p = getattr(c.model, key)
        yield f"model.{key}", p is None or 0 <= p < 1, "at least 0 and below 1"
    yield "model.max_length", c.model.max_length >= 3, "at least 3"
    s = c.smart
    yield "smart.weight", 0 <= s.weight < math.inf, "at least 0"
    yield "smart.sigma", s.sigma is None or 0 <= s.sigma < math.inf, "at least 0"
    yield "smart.step_size", s.step_size is None or s.step_size > 0, "above 0"
    yield "smart.num_steps", s.num_steps is None or s.num_steps >= 1, at_least_one
    yield "smart.radius", s.radius is None or 0 < s.radius < math.inf, "above 0"
    yield "bregman.weight", 0 <= c.bregman.weight < math.inf, "at least 0"
    yield "bregman.beta", 0 <= c.bregman.beta <= 1, "from 0 to 1"
    o, head_rate = c.optimizer, c.optimizer.head_learning_rate
    yield "optimizer.learning_rate", 0 < o.learning_rate < math.inf, "above 0"
    yield "optimizer.head_learning_rate", head_rate is None or 0 < head_rate < math.inf, "above 0"
    yield "optimizer.weight_decay", 0 <= o.weight_decay < math.inf, "at least 0"
    yield "optimizer.betas", all(0 <= beta < 1 for beta in o.betas), "at least 0 and below 1"
    yield "optimizer.eps", 0 < o.eps < math.inf, "above 0"
    yield "optimizer.warmup", 0 <= o.warmup <= 1, "from 0 to 1"
    yield "optimizer.clip_norm", 0 <= o.clip_norm < math.inf, "at least 0"
    epoch_task = c.round.epoch_task
    yield "round.batch_size", c.round.batch_size >= 1, at_least_one
    yield (
        "round.epoch_task",
        epoch_task is None or epoch_task in c.tasks,
        f"in {shown(list(c.tasks), 200)}",
    )
    yield "log.every", c.log.every >= 1, at_least_one
    for key in ("evaluate_every", "dev_rows"):
        count = getattr(c.log, key)
        yield f"log.{key}", count is None or count >= 1, at_least_one


def _float32_rules(c: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """The same for values that are fine as they are written, but not as float32 holds them."""
    for key in _COMPUTED_WITH:
        value = _value_at(c, key)
        is_infinite_step = key == "smart.step_size" and value == math.inf
        yield key, value is None or is_infinite_step or _is_held(value), _RANGE
    yield "optimizer.eps", _is_held(c.optimizer.eps), _RANGE
    for name, task in c.tasks.items():
        yield f"tasks.{name}.weight", _is_held(task.weight), _RANGE
        if task.is_regression:
            yield from _label_rules(f"tasks.{name}.label_range", *task.label_range)
    below_one = "below 1 as float32, which rounds it to 1"
    yield "optimizer.betas", all(_float32(beta) < 1 for beta in c.optimizer.betas), below_one
    for key in ("hidden_dropout", "attention_dropout"):
        p = getattr(c.model, key)
        yield f"model.{key}", p is None or _float32(p) < 1, below_one
    radius = c.smart.radius
    yield (
        "smart.radius",
        radius is None or _is_held(radius**2),
        "from 1.1e-19 to 1.8e+19: R_s is quadratic in it, and float32 has to hold the square",
    )


def _label_rules(key: str, low: float, high: float) -> Iterator[tuple[str, bool, str]]:
    yield key, _is_held(low) and _is_held(high), f"two numbers {_RANGE}"
    yield key, _float32(low) < _float32(high), "two numbers that are still different as float32"


def _float32(value: float) -> float:
    """As float32 holds it: infinite where it is too large, 0 where it is too small."""
    return float(np.float32(min(max(value, -_LARGEST * 2), _LARGEST * 2)))


def _is_held(value: float) -> bool:
    """Whether float32 holds it with all its digits: 0, or a normal number."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of all strings and paths."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, str | Path):
        yield key, str(value)
    elif isinstance(value, Mapping | tuple):
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


def _value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config
