"""Rows to predict, from a file or from standard input, one after the other as they are needed."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sbrrt_fast.data.cells import is_visible, read_id, read_text
from sbrrt_fast.data.formats.compression import ending, open_bytes
from sbrrt_fast.data.formats.open_table import open_table
from sbrrt_fast.data.formats.table import BadRow, Table
from sbrrt_fast.data.task import Example, TaskConfig
from sbrrt_fast.data.text_file import check_text_file, open_text, read_lines
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.messages import shown

InputFormat = Literal["text", "tsv", "csv", "jsonl"]

STDIN = Path("-")
STDIN_NAME = "standard input"
_TABLES = (".tsv", ".tab", ".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")


class Inputs(ABC):
    """The rows of one source; they are iterated once.

    Attributes:
        format: ``text``, ``tsv``, ``csv``, ``jsonl`` or ``parquet``.
        num_rows: rows that were met so far.
        num_skipped: those of them that were left out, since they cannot be used.
        first_skipped: ``file:line: reason`` of the first of these, or empty.
    """

    format: str
    num_rows = num_skipped = 0
    first_skipped = ""

    @abstractmethod
    def __iter__(self) -> Iterator[Example]:
        """Raises DataError at a row that cannot be used and is not left out."""


@contextlib.contextmanager
def open_inputs(
    path: Path,
    task: TaskConfig,
    name: str,
    *,
    format: InputFormat | None = None,
    skips_bad_rows: bool = False,
) -> Iterator[Inputs]:
    """The rows to predict with task ``name``, without labels; other columns are not read.

    Raw text has a row per line, of two texts with a tab between them where the task takes pairs;
    rows are numbered from 1. In a table the columns are the task's; ids are those of its
    ``id_column`` or of ``id``, else rows are numbered.

    Args:
        path: a file, which may be compressed, or ``-`` for standard input.
        format: by the file's ending where it is None; standard input is ``text`` then.
        skips_bad_rows: leave out rows of a table that cannot be used, and count them.

    Raises:
        ConfigError: the ending says nothing. DataError: the file cannot be read, lacks a column, or
            has a row that cannot be used, with ``file:line``; also while rows are read.
    """
    try:
        if _is_text(path, format):
            with _lines(path) as lines:
                yield _TextInputs(lines, STDIN_NAME if path == STDIN else str(path), task)
            return
        with _on_disk(path, format) as file:
            chosen = "auto" if format is None or format == "text" else format
            record = replace(task, format=chosen, dataset="")
            with open_table(file, record, "test", name) as table:
                yield _TableInputs(table, task, skips_bad_rows, ending(file) == ".csv")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check --input") from None


class _TextInputs(Inputs):
    """A row per line."""

    format = "text"

    def __init__(self, lines: Iterator[str], source: str, task: TaskConfig):
        self._lines, self._source, self._task = lines, source, task

    def __iter__(self) -> Iterator[Example]:
        for line in self._lines:
            self.num_rows += 1
            try:
                texts = self._texts(line.rstrip("\r\n"))
            except BadRow as reason:
                raise DataError(f"{self._source}:{self.num_rows}: {reason}") from None
            yield Example(str(self.num_rows), texts)

    def _texts(self, line: str) -> tuple[str, ...]:
        columns, parts = self._task.text_columns, line.split("\t")
        if not is_visible(line):
            raise BadRow("the line is empty; in raw text every line is a row: remove it")
        if len(parts) != len(columns):
            expected = "two texts with a tab between them" if len(columns) == 2 else "one text"
            advice = "a table with a header is read with --format tsv or csv"
            raise BadRow(f"{len(parts)} texts between tabs instead of {expected}; {advice}")
        return tuple(read_text(part, column) for part, column in zip(parts, columns, strict=True))


class _TableInputs(Inputs):
    """The rows of a table."""

    def __init__(self, table: Table, task: TaskConfig, skips_bad_rows: bool, is_csv: bool):
        self._table, self._task, self._skips = table, task, skips_bad_rows
        self.format = _FORMATS.get(table.read_as, "parquet")
        if len(table.columns) == 1 and is_csv:  # no separator says which it is
            self.format = "csv"
        ids = [c for c in (task.id_column, "id") if c and table.columns.count(c) == 1]
        self._id = ids[0] if ids else None
        for column in task.text_columns:
            self._check(column)

    def __iter__(self) -> Iterator[Example]:
        names = [*self._task.text_columns, *([] if self._id is None else [self._id])]
        for number, cells in self._table.rows(names):
            self.num_rows += 1
            try:
                example = self._example(cells)
            except BadRow as reason:
                self._leave_out(number, reason)
            else:
                yield example

    def _example(self, cells: list[object] | BadRow) -> Example:
        if isinstance(cells, BadRow):
            raise cells
        columns = self._task.text_columns
        texts = tuple(read_text(cell, c) for cell, c in zip(cells, columns, strict=False))
        id = str(self.num_rows) if self._id is None else read_id(cells[-1], self._id)
        return Example(id, texts)

    def _leave_out(self, number: int, reason: BadRow) -> None:
        where = f"{self._table.place(number)}: {reason}"
        if not self._skips:
            raise DataError(f"{where}; correct the row, or pass --skip-bad-rows") from None
        self.num_skipped += 1
        self.first_skipped = self.first_skipped or where

    def _check(self, column: str) -> None:
        count = self._table.columns.count(column)
        if count != 1:
            problem = "two columns" if count else "no column"
            named = shown(", ".join(f"'{shown(title, 40)}'" for title in self._table.columns), 400)
            raise DataError(
                f"{self._table.header}: {problem} named '{column}' ({named}), from which the task "
                f"takes a text; read as {self._table.read_as}: rename the column, or say what the "
                "file is with --format"
            )


_FORMATS = {"tab-separated": "tsv", "comma-separated": "csv", "JSON lines": "jsonl"}


def _is_text(path: Path, format: InputFormat | None) -> bool:
    if format is not None:
        return format == "text"
    if path == STDIN or ending(path) in (".txt", ".text"):
        return True
    if ending(path) not in _TABLES:
        raise ConfigError(
            f"{path}: its ending does not say what it is; name it with --format text, tsv, csv or "
            "jsonl"
        )
    return False


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
    if path == STDIN:
        yield _stdin_lines()
        return
    check_text_file(path)
    with open_bytes(path) as file, open_text(file) as text:
        yield read_lines(path, text)


def _stdin_lines() -> Iterator[str]:
    text = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
    number = 0
    try:
        for line in read_lines(Path(STDIN_NAME), text):
            number += 1
            if "\0" in line:
                raise DataError(f"{STDIN_NAME}:{number}: a NUL byte; is this really text?")
            yield line
    except UnicodeDecodeError:
        raise DataError(
            f"{STDIN_NAME}: not UTF-8 in line {number + 1:,} or soon after; convert it to UTF-8"
        ) from None
    finally:
        text.detach()


@contextlib.contextmanager
def _on_disk(path: Path, format: InputFormat | None) -> Iterator[Path]:
    """A file to read a table from; what comes from standard input is copied to one."""
    if path != STDIN:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"stdin.{format}"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield copy
        except DataError as error:
            raise DataError(str(error).replace(str(copy), STDIN_NAME)) from None
