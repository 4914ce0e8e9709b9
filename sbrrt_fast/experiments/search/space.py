"""What a search varies: settings, each with the values that a trial may give it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

Name = str | int | float | bool | None  # of a value, as Optuna stores it


class Suggests(Protocol):
    """The part of ``optuna.Trial`` that gives a trial its values, the same ones at every call."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: Any, log: bool) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> Any: ...


@dataclass(frozen=True)
class Choice:
    """A setting that takes one of some values.

    Attributes:
        values: as YAML has them; lists for settings that are tuples.
    """

    key: str
    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[Name, ...]:
        return tuple(map(_name, self.values))

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that stand for all when the setting's range is checked."""
        return self.values

    def suggest(self, trial: Suggests) -> Any:
        name = trial.suggest_categorical(self.key, self.names)
        return self.values[self.names.index(name)]

    @property
    def grid_size(self) -> int | None:
        return len(self.values)

    def grid(self) -> tuple[Name, ...]:
        return self.names


@dataclass(frozen=True)
class Range:
    """A setting that is a number from ``low`` to ``high``, both included.

    Attributes:
        is_whole: whether it is an integer. step: distance of its values; None for all numbers.
        log: whether numbers are drawn evenly on a logarithmic scale.
    """

    key: str
    low: float
    high: float
    is_whole: bool
    step: float | None = None
    log: bool = False

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that stand for all when the setting's range is checked."""
        return self.low, self.high

    def suggest(self, trial: Suggests) -> Any:
        if self.is_whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.key, low, high, step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    @property
    def grid_size(self) -> int | None:
        """How many values there are; None without end, and where ``log`` leaves them open."""
        if self.log or (self.step is None and not self.is_whole):
            return None
        return 1 + int((_exact(self.high) - _exact(self.low)) / _exact(self.step or 1))

    def grid(self) -> tuple[Name, ...]:
        """All values; ``grid_size`` is not None."""
        return tuple(map(self.value, range(self.grid_size or 0)))

    def value(self, index: int) -> Name:
        """The one ``index`` steps above ``low``."""
        exact = _exact(self.low) + index * _exact(self.step or 1)
        return int(exact) if self.is_whole else float(exact)


Setting = Choice | Range


@dataclass(frozen=True)
class Space:
    """All settings that a search varies, in the order of their file."""

    settings: tuple[Setting, ...]

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """A trial's values by dotted key."""
        return {setting.key: setting.suggest(trial) for setting in self.settings}

    def grid_size(self) -> int:
        """How many combinations there are; every setting has a grid."""
        return math.prod(setting.grid_size or 0 for setting in self.settings)

    def grid(self) -> list[dict[str, Name]]:
        """Every combination, as Optuna stores it; the last setting varies fastest."""
        names = [setting.grid() for setting in self.settings]
        keys = [setting.key for setting in self.settings]
        return [dict(zip(keys, row, strict=True)) for row in itertools.product(*names)]

    def values(self, params: Mapping[str, Name]) -> dict[str, Any]:
        """Settings by key, of what Optuna has stored of a trial, which may be a part."""
        return {s.key: s.suggest(_Stored(params)) for s in self.settings if s.key in params}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """As in its file, with every word that has a default."""
        return {s.key: {k: v for k, v in _plain(s).items() if k != "key"} for s in self.settings}


@dataclass(frozen=True)
class _Stored:
    """Suggests what a trial has been given."""

    params: Mapping[str, Name]

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: Any, log: bool) -> Any:
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> Any:
        return self.params[name]


def _plain(setting: Setting) -> dict[str, Any]:
    return json.loads(json.dumps(vars(setting)))


def _name(value: Any) -> Name:
    return value if isinstance(value, Name) else json.dumps(value)


def _exact(number: float) -> Decimal:
    """As it is written, so that steps of 0.1 add up."""
    return Decimal(str(number))
