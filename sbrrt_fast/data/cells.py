"""What a cell of a row means: a text, an id, a label."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sbrrt_fast.data.formats.table import BadRow
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.messages import shown

MAX_FIELD = 1_000_000  # characters; BERT reads the first few thousand of them at most

_INVISIBLE = {"Cc", "Cf", "Cs", "Me", "Mn", "Zl", "Zp", "Zs"}  # and letters that have no shape:
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen."""
    return any(unicodedata.category(c) not in _INVISIBLE and c not in _FILLERS for c in text)


def read_text(cell: Any, column: str) -> str:
    """A text without the space around it. BadRow where it is none, or has nothing to see."""
    if cell is None:
        raise BadRow(f"{shown(column)} is empty")
    if not isinstance(cell, str):
        raise BadRow(f"{shown(column)} is {_kind(cell)}, not text")
    if len(cell) > MAX_FIELD:
        raise BadRow(f"a field has more than {MAX_FIELD:,} characters; shorten it")
    text = cell.strip()
    if not is_visible(text):
        raise BadRow(f"{shown(column)} {'has no visible character' if text else 'is empty'}")
    if not text.isascii() and _SURROGATE.search(text):
        raise BadRow(f"{shown(column)} holds half of a surrogate pair")
    return text


def read_id(cell: Any, column: str) -> str:
    """A row's id: a text without control characters, or a whole number."""
    is_number = isinstance(cell, int) and not isinstance(cell, bool)
    text = read_text(str(cell) if is_number else cell, column)
    is_odd = not text.isprintable()  # a quick look first
    if is_odd and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        raise BadRow(
            f"{shown(column)} '{shown(text)}' holds a line break or another control character"
        )
    return text


def label_text(cell: Any, column: str) -> str:
    """A label as it would stand in a text file: ``true``, ``3``, ``entailment``."""
    if isinstance(cell, bool):
        cell = "true" if cell else "false"
    elif isinstance(cell, float) and cell != cell:
        cell = None  # how a missing number is stored
    elif isinstance(cell, int | float):
        cell = repr(cell)
    return read_text(cell, column)


def is_number(text: str) -> bool:
    """Whether a text is a decimal number."""
    return _NUMBER.fullmatch(text) is not None


def as_class(text: str) -> str:
    """A class's name; whole numbers have one, so ``3.0`` is ``3``."""
    if is_number(text) and len(text) < 20 and float(text).is_integer():
        return str(int(float(text)))
    return text


@dataclass(frozen=True)
class LabelReader:
    """Labels of task ``name`` as numbers: of the class, or values inside ``label_range``."""

    task: TaskConfig
    name: str

    def __call__(self, cell: Any) -> float:
        """BadRow where the label is missing or not allowed."""
        text = label_text(cell, self.task.label_column)
        return self._class(text) if self.task.labels else self._number(text)

    @cached_property
    def _classes(self) -> dict[str, int]:
        numbers = {as_class(label): i for i, label in enumerate(self.task.labels)}
        return numbers | {label: i for i, label in enumerate(self.task.labels)}

    def _class(self, text: str) -> float:
        number = self._classes.get(text, self._classes.get(as_class(text)))
        if number is None:
            known = shown(", ".join(f"'{label}'" for label in self.task.labels), 300)
            raise BadRow(
                f"{shown(self.task.label_column)} '{shown(text)}' is none of {known} "
                f"(tasks.{self.name}.labels)"
            )
        return float(number)

    def _number(self, text: str) -> float:
        column, (low, high) = shown(self.task.label_column), self._range
        if not is_number(text):
            raise BadRow(
                f"{column} '{shown(text)}' is not a number; labels are numbers from {low:g} to "
                f"{high:g}{self._advice}"
            )
        value, text = float(text), shown(text)
        if not low <= value <= high:
            raise BadRow(f"{column} {text} is outside {low:g} to {high:g}{self._advice}")
        if not self.task.is_regression and value != int(value):
            raise BadRow(f"{column} {text} is not a whole number from {low:g} to {high:g}")
        return value

    @property
    def _advice(self) -> str:
        if self.task.is_regression:
            return f" (tasks.{self.name}.label_range)"
        return f"; where classes have other names, list them in tasks.{self.name}.labels"

    @property
    def _range(self) -> tuple[float, float]:
        return self.task.label_range if self.task.is_regression else (0, self.task.num_labels - 1)


def _kind(cell: Any) -> str:
    if isinstance(cell, bool | int | float):
        return f"the {'number' if not isinstance(cell, bool) else 'boolean'} {cell}"
    return f"of type {type(cell).__name__}"
