"""The ranges of settings: what a value must be, and what float32 makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

# A key, its value, whether the value is fine, and what is expected ("at least 1").
Rule = tuple[str, Any, bool, str]

FLOAT32 = "of a size from 1.2e-38 to 3.4e+38 to be held by float32 (smaller ones are 0 there)"
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def problems(rules: Iterable[Rule]) -> Iterator[str]:
    """A sentence for every rule that is broken; it starts with the key."""
    for key, value, is_fine, expected in rules:
        if not is_fine:
            yield f"{key}: must be {expected}, got {shown(repr(value))}"


def check(rules: Iterable[Rule]) -> None:
    """Raises ConfigError for the first rule that is broken; later ones are not evaluated."""
    for problem in problems(rules):
        raise ConfigError(problem)


def fraction_rules(key: str, value: Any, *numbers: float) -> Iterator[Rule]:
    """The numbers of a value are in [0, 1), as they are written and as float32 holds them."""
    yield key, value, all(0 <= x < 1 for x in numbers), "at least 0 and below 1"
    yield key, value, all(map(is_fraction, numbers)), "below 1 as float32, which rounds it to 1"


def is_fraction(value: float) -> bool:
    """Whether float32 holds it as a number in [0, 1)."""
    return value >= 0 and float32(value) < 1


def float32(value: float) -> float:
    """As float32 holds it: infinite where it is too large, 0 where it is too small."""
    return float(np.float32(min(max(value, -_LARGEST * 2), _LARGEST * 2)))


def is_float32(value: float) -> bool:
    """Whether float32 holds it with all its digits: 0, or a normal number."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST
