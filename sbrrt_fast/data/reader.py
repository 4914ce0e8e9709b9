"""Strict reader of tab-separated task files: a row is understood, or it is an error with its line.

The format is that of the CS 224N default final project: tab separated, UTF-8, a header line,
fields quoted the CSV way (``""`` inside ``"..."``) unless ``quoting`` is ``none``, any number of
index columns nobody reads. Columns are found by name; blank lines are passed over.
"""

from __future__ import annotations

import csv
import io
import os
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.data.text_file import check_text_file, open_regular, read_lines
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import printable, shown

MAX_FIELD = 1_000_000  # characters; BERT reads the first few thousand of them at most

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_INVISIBLE = {"Cc", "Cf", "Cs", "Me", "Mn", "Zl", "Zp", "Zs"}  # and letters that have no shape:
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class ReadReport:
    """How one file was read.

    Attributes:
        path: the file.
        num_rows: rows that were taken.
        num_skipped: rows left out (``on_bad_row: skip``).
        first_skipped: ``file:line: reason`` of the first row left out, or empty.
    """

    path: Path
    num_rows: int
    num_skipped: int = 0
    first_skipped: str = ""

    def message(self) -> str:
        """One printable line, e.g. ``a.csv: 20,212 rows, skipped 2 (first: a.csv:7: ...)``."""
        line = f"{printable(self.path.name)}: {self.num_rows:,} rows"
        if self.num_skipped:
            line += f", skipped {self.num_skipped:,} (first: {self.first_skipped})"
        return line


def read_split(
    path: str | Path, task: TaskConfig, split: Split, name: str
) -> tuple[list[Example], ReadReport]:
    """Read one split of task ``name``; texts and ids come without surrounding space.

    Labels are whole numbers for ``classes`` (``3`` or ``3.0``) and ``binary``, numbers inside
    ``label_range`` otherwise; a ``test`` split has none, its label column is not looked at.

    A bad row is one with a wrong number of fields, wrong quoting within its line, a field of more
    than 1,000,000 characters, an id or text without any visible character, an id with a control
    character such as a line break, a label that is missing or not allowed, or an id an earlier row
    already has. It is an error, or left out and counted where ``task.on_bad_row`` is ``skip``.

    Raises:
        DataError: starting with ``file:line`` for a bad row; and, whatever ``on_bad_row`` says,
            for a missing file or column, a file that is empty, has no usable row, is not UTF-8,
            holds a NUL or a line of more than 4,000,000 characters, or has a quoted field that
            swallows following lines.
    """
    path = Path(path)
    try:
        check_text_file(path)
        file = open_regular(path)
    except FileNotFoundError:
        raise DataError(_missing(path, task, name)) from None
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text, _field_limit():
        return _read_rows(path, _parse_rows(path, text, task, name), task, split, name)


def _read_rows(
    path: Path, rows: _Rows, task: TaskConfig, split: Split, name: str
) -> tuple[list[Example], ReadReport]:
    columns = _Columns.from_header(path, rows, task, split, name)
    examples: list[Example] = []
    line_of_id: dict[str, int] = {}
    num_skipped, first_skipped = 0, ""
    for line, fields in rows:
        try:
            example = columns.example(fields)
            _refuse_duplicate(example.id, line, line_of_id)
            examples.append(example)
        except _BadRow as reason:
            if task.on_bad_row != "skip":
                raise DataError(
                    f"{path}:{line}: {reason}; correct the row, or set "
                    f"tasks.{name}.on_bad_row to 'skip' to leave such rows out"
                ) from None
            num_skipped += 1
            first_skipped = first_skipped or printable(f"{path.name}:{line}: {reason}")
    report = ReadReport(path, len(examples), num_skipped, first_skipped)
    if not examples:
        raise DataError(f"{path}:1: no row of task '{name}' can be used ({report.message()})")
    return examples, report


_Rows = Iterator[tuple[int, "list[str] | _BadRow"]]


class _BadRow(Exception):
    """Why one row cannot be used; the reader adds file and line."""


@dataclass(frozen=True)
class _Columns:
    """Where the fields of an example are in a row."""

    task: TaskConfig
    header: list[str]
    id: int
    texts: tuple[int, ...]
    label: int | None

    @classmethod
    def from_header(
        cls,
        path: Path,
        rows: _Rows,
        task: TaskConfig,
        split: Split,
        name: str,
    ) -> _Columns:
        line, header = next(rows, (1, _BadRow("there is none")))
        if isinstance(header, _BadRow):
            raise DataError(
                f"{path}:{line}: no header line, {header}; it has to name the columns of '{name}'"
            )

        def position(column: str, setting: str) -> int:
            if header.count(column) == 1:
                return header.index(column)
            problem = "two columns" if column in header else "no column"
            named = shown(", ".join(f"'{shown(title, 40)}'" for title in header if title), 400)
            raise DataError(
                f"{path}:{line}: {problem} named '{column}' in the header ({named}); correct it, "
                f"or name the column in tasks.{name}.{setting}"
            )

        return cls(
            task=task,
            header=header,
            id=position(task.id_column or "id", "id_column"),
            texts=tuple(position(column, "text_columns") for column in task.text_columns),
            label=None if split == "test" else position(task.label_column, "label_column"),
        )

    def example(self, fields: list[str] | _BadRow) -> Example:
        """The example in a row's fields; raises _BadRow."""
        if isinstance(fields, _BadRow):
            raise fields
        if len(fields) != len(self.header):
            raise _BadRow(f"{len(fields)} fields where the header has {len(self.header)}")
        return Example(
            id=self._id(fields),
            texts=tuple(self._filled(fields, column) for column in self.texts),
            label=None if self.label is None else self._label(fields),
        )

    def _filled(self, fields: list[str], column: int) -> str:
        text = fields[column].strip()
        if _is_visible(text):
            return text
        reason = "has no visible character" if text else "is empty"
        raise _BadRow(f"{shown(self.header[column])} {reason}")

    def _id(self, fields: list[str]) -> str:
        text = self._filled(fields, self.id)
        is_odd = not text.isprintable()  # a quick look first
        if is_odd and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
            raise _BadRow(
                f"{shown(self.header[self.id])} '{shown(text)}' holds a line break or another "
                "control character"
            )
        return text

    def _label(self, fields: list[str]) -> float:
        text, column = self._filled(fields, self.label), shown(self.header[self.label])
        low, high = self._label_range()
        if not _NUMBER.fullmatch(text):
            raise _BadRow(
                f"{column} '{shown(text)}' is not a number; labels are numbers from {low:g} to "
                f"{high:g}: write a number for each word"
            )
        value, text = float(text), shown(text)
        if not low <= value <= high:
            raise _BadRow(f"{column} {text} is outside {low:g} to {high:g}")
        if not self.task.is_regression and value != int(value):
            raise _BadRow(f"{column} {text} is not a whole number from {low:g} to {high:g}")
        return value

    def _label_range(self) -> tuple[float, float]:
        if self.task.is_regression:
            return self.task.label_range
        return (0, self.task.num_classes - 1) if self.task.head == "classes" else (0, 1)


def _refuse_duplicate(id: str, line: int, line_of_id: dict[str, int]) -> None:
    first = line_of_id.setdefault(id, line)
    if first != line:
        raise _BadRow(f"id '{shown(id)}' is already in line {first}")


def _is_visible(text: str) -> bool:
    return any(unicodedata.category(c) not in _INVISIBLE and c not in _FILLERS for c in text)


def _missing(path: Path, task: TaskConfig, name: str) -> str:
    problem = "no such file" if os.path.isdir(path.parent) else f"there is no folder {path.parent}"
    return (
        f"{path}: {problem}; task '{name}' reads {', '.join(task.files.values())}. Say where they "
        "are with --data-dir, or leave --data-dir out to use the built-in sample"
    )


_csv_is_in_use = threading.Lock()  # its field limit is one for the whole process


@contextmanager
def _field_limit() -> Iterator[None]:
    with _csv_is_in_use:
        before = csv.field_size_limit(MAX_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _parse_rows(path: Path, file: TextIO, task: TaskConfig, name: str) -> _Rows:
    """Yield (line the row starts in, fields, or why they cannot be read); no blank lines.

    Only a row that runs over several lines can hide others, so that is where it raises DataError:
    an unclosed quote makes ``csv`` take whole rows for one field.
    """
    quoting = csv.QUOTE_NONE if task.quoting == "none" else csv.QUOTE_MINIMAL
    lines = read_lines(path, file)
    reader = csv.reader(lines, delimiter="\t", quoting=quoting, strict=True)
    num_fields = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = _BadRow(_reason(str(error), name))
        is_one_line = reader.line_num == line
        if is_one_line and _is_blank(fields):
            continue
        num_fields = num_fields or _count(fields)
        if not is_one_line and _has_swallowed_rows(fields, num_fields):
            raise DataError(
                f"{path}:{line}: a quote opened in this row is not closed and takes in the lines "
                f"to {reader.line_num}; close it, double it ('\"\"') inside a quoted field, or set "
                f"tasks.{name}.quoting to 'none' if fields are never quoted"
            )
        yield line, fields


def _reason(error: str, name: str) -> str:
    """Why ``csv`` refuses a row, in our words; the messages are CPython's."""
    if "field larger than" in error:
        return f"a field has more than {MAX_FIELD:,} characters; shorten it"
    if "expected after" in error:
        problem = "text follows a closing quote"
    elif "unexpected end" in error:
        problem = "a quote is not closed"
    else:
        problem = error
    return (
        f'{problem}; quoted fields look like "..." with "" inside, and where they are never quoted '
        f"set tasks.{name}.quoting to 'none'"
    )


def _is_blank(fields: list[str] | _BadRow) -> bool:
    return isinstance(fields, list) and len(fields) <= 1 and not _is_visible("".join(fields))


def _count(fields: list[str] | _BadRow) -> int:
    return len(fields) if isinstance(fields, list) else 0


def _has_swallowed_rows(fields: list[str] | _BadRow, num_fields: int) -> bool:
    """Whether a row over several lines holds other rows: its tabs are those of whole rows."""
    if isinstance(fields, _BadRow) or len(fields) != num_fields:
        return True
    for column, field in enumerate(fields):
        num_tabs = [line.count("\t") for line in _LINE_BREAK.split(field)]
        between = [num_fields - 1] * (len(num_tabs) - 2)
        if len(num_tabs) > 1 and num_tabs == [num_fields - 1 - column, *between, column]:
            return True
    return False
