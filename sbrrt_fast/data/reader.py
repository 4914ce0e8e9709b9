"""Strict reader of tab-separated task files: a row is understood, or it is an error with its line.

The format is that of the CS 224N default final project: tab separated, UTF-8, a header line,
fields quoted the CSV way (``""`` inside ``"..."``), any number of index columns nobody reads.
Columns are found by name.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.errors import DataError

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
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
        line = f"{self.path.name}: {self.num_rows:,} rows"
        if self.num_skipped:
            line += f", skipped {self.num_skipped:,} (first: {self.first_skipped})"
        return line


def read_split(
    path: str | Path, task: TaskConfig, split: Split, name: str
) -> tuple[list[Example], ReadReport]:
    """Read one split of task ``name``; texts and ids come without surrounding space.

    Labels are whole numbers for ``classes`` (``3`` or ``3.0``) and ``binary``, numbers inside
    ``label_range`` otherwise; a ``test`` split has none, its label column is not looked at.

    A bad row is one with a wrong number of fields, wrong quoting within its line, an empty id or
    text, a label that is missing or not allowed, or an id an earlier row already has. It is an
    error, or left out and counted where ``task.on_bad_row`` is ``skip``.

    Raises:
        DataError: starting with ``file:line`` for a bad row; and, whatever ``on_bad_row`` says,
            for a missing file or column, a file that is empty, has no usable row, is not UTF-8,
            holds a NUL, or has a quoted field that swallows following lines.
    """
    path = Path(path)
    rows = _parse_rows(path, _read_text(path, task, name))
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
            first_skipped = first_skipped or f"{path.name}:{line}: {reason}"
    report = ReadReport(path, len(examples), num_skipped, first_skipped)
    if not examples:
        raise DataError(f"{path}:1: no row of task '{name}' can be used ({report.message()})")
    return examples, report


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
        rows: Iterator[tuple[int, list[str] | None]],
        task: TaskConfig,
        split: Split,
        name: str,
    ) -> _Columns:
        _, header = next(rows, (1, None))
        if header is None:
            raise DataError(f"{path}:1: no header line; it has to name the columns of '{name}'")

        def position(column: str, setting: str) -> int:
            if header.count(column) == 1:
                return header.index(column)
            problem = "two columns" if column in header else "no column"
            named = ", ".join(repr(title) for title in header if title)
            raise DataError(
                f"{path}:1: {problem} named '{column}' in the header ({named}); correct it, "
                f"or name the column in tasks.{name}.{setting}"
            )

        return cls(
            task=task,
            header=header,
            id=position(task.id_column, "id_column"),
            texts=tuple(position(column, "text_columns") for column in task.text_columns),
            label=None if split == "test" else position(task.label_column, "label_column"),
        )

    def example(self, fields: list[str] | None) -> Example:
        """The example in a row's fields; raises _BadRow."""
        if fields is None:
            raise _BadRow('a quote is not closed; quoted fields look like "..." with "" inside')
        if len(fields) != len(self.header):
            raise _BadRow(f"{len(fields)} fields where the header has {len(self.header)}")
        return Example(
            id=self._filled(fields, self.id),
            texts=tuple(self._filled(fields, column) for column in self.texts),
            label=None if self.label is None else self._label(fields),
        )

    def _filled(self, fields: list[str], column: int) -> str:
        if text := fields[column].strip():
            return text
        raise _BadRow(f"{self.header[column]} is empty")

    def _label(self, fields: list[str]) -> float:
        text, column = self._filled(fields, self.label), self.header[self.label]
        if not _NUMBER.fullmatch(text):
            raise _BadRow(f"{column} '{text}' is not a number")
        low, high = self._label_range()
        value = float(text)
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
        raise _BadRow(f"id '{id}' is already in line {first}")


def _read_text(path: Path, task: TaskConfig, name: str) -> str:
    """The file's text; raises DataError if it is missing, empty, not UTF-8 or holds a NUL."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(_missing(path, task, name)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = _line_at(raw[: error.start].decode("utf-8"))
        raise DataError(f"{path}:{line}: not UTF-8; save the file as UTF-8 text") from None
    if not text.strip():
        raise DataError(f"{path}:1: the file is empty; it needs a header line and rows")
    if (nul := text.find("\0")) >= 0:
        raise DataError(f"{path}:{_line_at(text[:nul])}: a NUL byte; is this really a text file?")
    return text


def _missing(path: Path, task: TaskConfig, name: str) -> str:
    problem = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
    return (
        f"{path}: {problem}; task '{name}' reads {', '.join(task.files.values())}. Say where they "
        "are with --data-dir, or leave --data-dir out to use the built-in sample"
    )


def _line_at(text_before: str) -> int:
    return 1 + len(_LINE_BREAK.findall(text_before))


def _parse_rows(path: Path, text: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield (line the row starts in, fields); None for fields of a line that is quoted wrongly.

    Only a row that runs over several lines can hide others, so that is where it raises DataError:
    an unclosed quote makes ``csv`` take whole rows for one field.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    num_fields = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
        num_fields = num_fields or len(fields or ())
        if reader.line_num > line and _has_swallowed_rows(fields, num_fields):
            raise DataError(
                f"{path}:{line}: a quote opened in this row is not closed and takes in the lines "
                f"to {reader.line_num}; close it, or double it ('\"\"') inside a quoted field"
            )
        yield line, fields


def _has_swallowed_rows(fields: list[str] | None, num_fields: int) -> bool:
    """Whether a row over several lines holds other rows: its tabs are those of whole rows."""
    if fields is None or len(fields) != num_fields:
        return True
    for column, field in enumerate(fields):
        num_tabs = [line.count("\t") for line in _LINE_BREAK.split(field)]
        between = [num_fields - 1] * (len(num_tabs) - 2)
        if len(num_tabs) > 1 and num_tabs == [num_fields - 1 - column, *between, column]:
            return True
    return False
