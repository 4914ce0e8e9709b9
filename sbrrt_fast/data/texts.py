"""Texts of any number as examples of a task, a bounded window of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from sbrrt_fast.data.cells import is_visible
from sbrrt_fast.data.task import Example, TaskConfig
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import shown

Text: TypeAlias = "str | Sequence[str]"  # a text, or the two of a pair

WINDOW = 4096  # rows
_MOST_CHARACTERS = 4_000_000  # of a window, unless its first row alone has more


def text_examples(texts: Iterable[Text], task: TaskConfig, name: str) -> Iterator[Example]:
    """An example of task ``name`` for each text, or pair of texts, with its number from 1 as id.

    Raises:
        DataError: naming the first row that is no text or no pair, as the task needs it, or has no
            visible character.
    """
    if isinstance(texts, str):
        raise DataError(f"texts: '{shown(texts, 40)}' is one text; give a list or another iterable")
    for number, text in enumerate(texts, 1):
        parts = _parts(text, task)
        if problem := _problem_of(parts, task):
            raise DataError(f"texts, row {number}: {problem}, got {shown(repr(text))} ('{name}')")
        yield Example(str(number), parts)


def windows(examples: Iterable[Example], num_rows: int = WINDOW) -> Iterator[list[Example]]:
    """The examples in lists of at most ``num_rows``, fewer where they are very long."""
    window: list[Example] = []
    num_characters = 0
    for example in examples:
        window.append(example)
        num_characters += sum(map(len, example.texts))
        if len(window) >= num_rows or num_characters >= _MOST_CHARACTERS:
            yield window
            window, num_characters = [], 0
    if window:
        yield window


def _parts(text: Text, task: TaskConfig) -> tuple[str, ...]:
    is_one = isinstance(text, str) or not isinstance(text, Sequence)
    return (text,) if is_one else tuple(text)  # type: ignore[return-value]


def _problem_of(parts: tuple[object, ...], task: TaskConfig) -> str | None:
    expected = "a pair of texts" if task.is_pair else "one text"
    if len(parts) != len(task.text_columns):
        return f"the task takes {expected} a row"
    for part in parts:
        if not isinstance(part, str):
            return f"the task takes {expected} a row, of type str"
        if any("\ud800" <= c <= "\udfff" for c in part):
            return "a text holds half of a surrogate pair, which is no character; remove it"
        if not is_visible(part):
            return "a text has no visible character; leave the row out"
    return None
