"""The YAML file of a search's space, checked whole before the first trial.

Its keys are dotted settings, ``smart.radius``; what stands under one are its ``values``, or the
numbers from ``low`` to ``high``, with ``step`` or ``log``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import ALIAS, config_leaves, did_you_mean, known_keys, quoted
from sbrrt_fast.config_io import CALL_FIELDS, config_with
from sbrrt_fast.config_yaml import key_lines, read_yaml
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.experiments.search.space import Choice, Range, Setting, Space
from sbrrt_fast.messages import shown

MOST_COMBINATIONS = 1000  # of a grid
_BACKBONE = f"model.{ALIAS}"
_WORDS = ("values", "low", "high", "step", "log")
_OF_THE_SEARCH = {
    **dict.fromkeys(CALL_FIELDS, "is of one call of a command, not of a run"),
    "seed": "is set for each run by this command; give --seeds K",
    "recipe": "is a name, not a setting that is trained with",
    "extended": "is written by training",
}
# What decides which dev rows are scored, and how: trials that differ there cannot be compared.
_MEASURES = ("data_dir", "log.dev_rows", "skip_final_evaluation")
_MEASURES_OF_TASKS = ("files", "metric", "dataset", "dataset_config", "max_rows", "split_seed")


class SpaceError(ConfigError):
    """A space that cannot be searched.

    Attributes:
        mistakes: a line each, with the file and, where it is known, the line in it.
    """

    def __init__(self, mistakes: list[str]):
        more = f" (and {len(mistakes) - 1} more mistakes)" if len(mistakes) > 1 else ""
        super().__init__(mistakes[0] + more)
        self.mistakes = mistakes


def read_space(path: Path, base: RunConfig, is_grid: bool = False) -> Space:
    """The space in a file.

    Args:
        base: the settings that trials have besides those of the space.
        is_grid: whether every combination is to be tried.

    Raises:
        SpaceError: with every mistake in it.
        ConfigError: the file cannot be read.
    """
    data = read_yaml(path)
    if not isinstance(data, Mapping) or not data:
        raise SpaceError([f"{path}: expected settings and their values, got {quoted(data)}"])
    lines = key_lines(path)
    reader = _Reader(path, base, lines)
    settings = [reader.setting(key, data[key]) for key in data]
    reader.check_keys_are_different(list(data))
    found = tuple(setting for setting in settings if setting is not None)
    reader.check_pairs(found)
    if is_grid:
        reader.check_grid(found)
    if reader.mistakes:
        raise SpaceError(reader.mistakes)
    return Space(found)


class _Reader:
    """Makes settings and collects what is wrong with them."""

    def __init__(self, path: Path, base: RunConfig, lines: Mapping[str, int]):
        self.path, self.base, self.lines = path, base, lines
        self.mistakes: list[str] = []
        self._keys: dict[str, str] = {}  # a setting's, as the file has it

    def setting(self, key: str, entry: Any) -> Setting | None:
        """None where there is a mistake."""
        name = _BACKBONE if key == ALIAS else key
        self._keys[name] = key
        try:
            self._check_key(name)
            found = self._made(name, entry)
            for value in found.tried:
                config_with(self.base, {name: value}, self._at(name))
        except ConfigError as error:
            text = str(error)
            prefix = f"{self.path}:"
            self.mistakes.append(text if text.startswith(prefix) else f"{self._at(name)}: {text}")
            return None
        return found

    def check_keys_are_different(self, keys: list[str]) -> None:
        if ALIAS in keys and _BACKBONE in keys:
            both = f"'{ALIAS}' and '{_BACKBONE}' are the same setting; remove one"
            self.mistakes.append(f"{self._at(_BACKBONE)}: {both}")

    def check_pairs(self, settings: tuple[Setting, ...]) -> None:
        """A mistake for each two settings with values that no run can have together."""
        choices = [setting for setting in settings if isinstance(setting, Choice)]
        for first, second in itertools.combinations(choices, 2):
            if not _meet(first.key, second.key):
                continue
            for pair in itertools.product(first.values, second.values):
                values = dict(zip((first.key, second.key), pair, strict=True))
                words = " with ".join(f"{key} {quoted(value)}" for key, value in values.items())
                try:
                    config_with(self.base, values, words)
                except ConfigError as error:
                    self.mistakes.append(f"{self._at(second.key)}: {error}")
                    break

    def check_grid(self, settings: tuple[Setting, ...]) -> None:
        for setting in settings:
            if setting.grid_size is None:
                advice = "give values, or a step without log"
                problem = f"{setting.key}: a grid needs values that can be counted; {advice}"
                self.mistakes.append(f"{self._at(setting.key)}: {problem}")
        count = 0 if self.mistakes else Space(settings).grid_size()
        if count > MOST_COMBINATIONS:
            self.mistakes.append(
                f"{self.path}: the grid has {count:,} combinations, more than "
                f"{MOST_COMBINATIONS:,}; leave values out, or use --sampler random or tpe"
            )

    def _at(self, name: str) -> str:
        line = self.lines.get(self._keys[name])
        return f"{self.path}:{line}" if line else str(self.path)

    def _check_key(self, name: str) -> None:
        leaves = config_leaves(self.base)
        if any(key.startswith(f"{name}.") for key in leaves):
            raise ConfigError(f"'{shown(name)}' is a section; name one of its settings")
        if name not in leaves:
            hint = did_you_mean(name, known_keys(self.base))
            raise ConfigError(f"unknown setting '{shown(name)}'{hint}")
        if name in _OF_THE_SEARCH:
            raise ConfigError(f"{name}: {_OF_THE_SEARCH[name]}; it cannot be searched")
        if _measures(name):
            raise ConfigError(
                f"{name}: decides what dev scores are made of, so trials that differ in it cannot "
                "be compared; set it in the recipe, for all"
            )

    def _made(self, name: str, entry: Any) -> Setting:
        _check_words(name, entry)
        if "values" in entry:
            return Choice(name, _different(name, entry["values"]))
        kind = _kind_of_number(name)
        if kind is None:
            raise ConfigError(f"{name}: is no number, so it has no range; give values: [...]")
        return _range(name, entry, kind)


def _meet(first: str, second: str) -> bool:
    """Whether two settings are of one section, or of one task, or one of the run as a whole."""
    sections = [key.rpartition(".")[0] for key in (first, second)]
    return sections[0] == sections[1] or "" in sections


def _measures(name: str) -> bool:
    parts = name.split(".")
    is_of_task = parts[0] == "tasks" and len(parts) > 2 and parts[2] in _MEASURES_OF_TASKS
    return name in _MEASURES or is_of_task


def _check_words(name: str, entry: Any) -> None:
    """Either ``values`` alone, or ``low`` and ``high`` with what goes with them."""
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{name}: got {quoted(entry)}; write {{values: [...]}} or {{low: ..., high: ...}}"
        )
    for word in entry:
        if word not in _WORDS:
            hint = did_you_mean(word, _WORDS) or f"; there are {', '.join(_WORDS)}"
            raise ConfigError(f"{name}: unknown key '{shown(word)}'{hint}")
    if "values" in entry and len(entry) > 1:
        raise ConfigError(f"{name}: has values and a range; give one of them")
    if "values" not in entry and not {"low", "high"} <= set(entry):
        missing = [word for word in ("low", "high") if word not in entry]
        raise ConfigError(f"{name}: '{missing[0]}' is missing; give low and high, or values")


def _different(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}: values must be a list of one or more, got {quoted(values)}")
    for number, value in enumerate(values):
        if value in values[:number]:  # 1 and 1.0, which Optuna cannot tell apart, too
            raise ConfigError(f"{name}: the value {quoted(value)} is given twice; remove one")
    return tuple(values)


def _range(name: str, entry: Mapping[str, Any], kind: type) -> Range:
    """A range of numbers of a kind, ``int`` or ``float``."""
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{name}: log must be true or false, got {quoted(log)}")
    numbers = {w: _number(name, w, entry[w], kind) for w in ("low", "high", "step") if w in entry}
    found = Range(name, numbers["low"], numbers["high"], kind is int, numbers.get("step"), log)
    for problem in _problems(found):
        raise ConfigError(f"{name}: {problem}")
    return found


def _problems(setting: Range) -> Iterator[str]:
    low, high, step = setting.low, setting.high, setting.step
    if not low < high:
        yield f"low must be below high, got {low!r} and {high!r}"
    if setting.log and low <= 0:
        yield f"log needs a low above 0, got {low!r}"
    if setting.log and step is not None:
        yield "log and step do not go together; leave one out"
    if step is not None and step <= 0:
        yield f"step must be above 0, got {step!r}"
    if step is not None and (last := setting.value((setting.grid_size or 1) - 1)) != high:
        yield f"steps of {step!r} from {low!r} do not end at high {high!r}; make it {last!r}"


def _number(name: str, word: str, value: Any, kind: type) -> Any:
    is_number = isinstance(value, int | kind) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        expected = "a whole number" if kind is int else "a finite number"
        raise ConfigError(f"{name}: {word} must be {expected}, got {quoted(value)}")
    return kind(value)


def _kind_of_number(name: str) -> type | None:
    """``int`` or ``float``, of a setting that may be a number."""
    cls: Any = RunConfig
    for part in name.split("."):
        is_task = cls == dict[str, TaskConfig]
        cls = TaskConfig if is_task else get_type_hints(cls)[part]
    kinds = get_args(cls) if get_origin(cls) in (Union, UnionType) else (cls,)
    return next((kind for kind in (float, int) if kind in kinds), None)
