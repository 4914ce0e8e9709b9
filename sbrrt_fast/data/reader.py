"""Strict reader of task files: a row is understood, or it is an error that says where it is.

Delimited text is that of the CS 224N default final project, or comma-separated: UTF-8, a header
line, fields quoted the CSV way (``""`` inside ``"..."``) unless ``quoting`` is ``none``, any number
of columns nobody reads. Columns are found by name, in every format; blank lines are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sbrrt_fast.data.cells import LabelReader, read_id, read_text
from sbrrt_fast.data.formats.hub_dataset import DatasetSplit
from sbrrt_fast.data.formats.open_table import open_table
from sbrrt_fast.data.formats.table import BadRow, Row, Table
from sbrrt_fast.data.sources import Source, missing_file
from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import printable, shown

_ROWS_PER_TICK = 4096


@dataclass(frozen=True)
class ReadReport:
    """How the files of one split were read.

    Attributes:
        name: of the file, without its folder, of the first of several, or of the dataset.
        num_rows: rows that were taken.
        num_skipped: rows left out (``on_bad_row: skip``).
        first_skipped: ``file:line: reason`` of the first row left out, or empty.
        num_files: how many files there are.
        note: what was made of the file where that is not plain, or empty.
        num_noisy: labels that were replaced (``label_noise``).
    """

    name: str
    num_rows: int
    num_skipped: int = 0
    first_skipped: str = ""
    num_files: int = 1
    note: str = ""
    num_noisy: int = 0

    def message(self) -> str:
        """One printable line, e.g. ``a.csv: 20,212 rows, skipped 2 (first: a.csv:7: ...)``."""
        others = f" and {self.num_files - 1:,} more" if self.num_files > 1 else ""
        line = f"{printable(self.name)}{others}: {self.num_rows:,} rows"
        if self.num_skipped:
            line += f", skipped {self.num_skipped:,} (first: {self.first_skipped})"
        return line


def nothing() -> None:
    """The ``tick`` of a process that nobody watches."""


def read_split(
    source: str | Path | Source | Sequence[Source],
    task: TaskConfig,
    split: Split,
    name: str,
    tick: Callable[[], object] = nothing,
) -> tuple[list[Example], ReadReport]:
    """Read one split of task ``name``; texts and ids come without surrounding space.

    Labels are whole numbers for ``classes`` (``3`` or ``3.0``) and ``binary``, the places of their
    names in ``task.labels`` where there are any, and numbers inside ``label_range`` otherwise. A
    ``test`` split has labels where its label column is there and holds a label in any row.

    A bad row is one with a wrong number of fields, wrong quoting within its line, a field of more
    than 1,000,000 characters, an id or text without any visible character, an id with a control
    character such as a line break, a label that is missing or not allowed, or an id an earlier row
    already has. It is an error, or left out and counted where ``task.on_bad_row`` is ``skip``.

    Args:
        source: a file, a dataset's split, or several, which follow each other.
        tick: called every few thousand rows.

    Raises:
        DataError: starting with ``file:line`` for a bad row; and, whatever ``on_bad_row`` says,
            for a missing file or column, a file that is empty, has no usable row, is not UTF-8,
            holds a NUL or a line of more than 4,000,000 characters, or has a quoted field that
            swallows following lines.
    """
    sources = [source] if isinstance(source, str | Path | DatasetSplit) else list(source)
    sources = [Path(s) if isinstance(s, str) else s for s in sources]
    reader = SplitReader(sources, task, split, name, tick)
    examples = list(reader)
    report = reader.finish()
    return [e for e in examples if not reader.is_dropped(e)], report


@dataclass(frozen=True)
class _Columns:
    """The columns of an example; where ``id`` is None rows are numbered."""

    id: str | None
    texts: tuple[str, ...]
    label: str | None

    @classmethod
    def of(cls, table: Table, task: TaskConfig, split: Split, name: str) -> _Columns:
        """Raises DataError where the table lacks a column that it needs."""
        id, label = task.id_column, task.label_column
        if id is None and table.columns.count("id") == 1:
            id = "id"
        if split == "test" and label not in table.columns:
            label = None
        columns = cls(id, task.text_columns, label)
        settings = [id and "id_column", *("text_columns" for _ in columns.texts), "label_column"]
        for column, setting in zip([id, *columns.texts, label], settings, strict=True):
            if column is not None and table.columns.count(column) != 1:
                raise DataError(column_problem(table, column, f"tasks.{name}.{setting}"))
        return columns

    @property
    def names(self) -> list[str]:
        return [c for c in (self.id, *self.texts, self.label) if c is not None]


def column_problem(table: Table, column: str, setting: str) -> str:
    """What to say of a column that the setting names and the table has not, or has twice."""
    problem = "two columns" if column in table.columns else "no column"
    named = shown(", ".join(f"'{shown(title, 40)}'" for title in table.columns if title), 400)
    hint = table.hint()
    question = f"; it was read as {table.read_as}: {hint}" if hint else ""
    return (
        f"{table.header}: {problem} named '{column}' in the header ({named}); correct it, "
        f"or name the column in {setting}{question}"
    )


class SplitReader:
    """Reads a split's files once, an example at a time; arguments as in ``read_split``.

    Whoever does not go to the end closes the iterator, and with it the file.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        task: TaskConfig,
        split: Split,
        name: str,
        tick: Callable[[], object] = nothing,
    ):
        self.sources, self.task, self.split, self.name = sources, task, split, name
        self.read_label, self._tick = LabelReader(task, name), tick
        self._tables: list[Table] = []
        self._seen: dict[str, tuple[int, int]] = {}  # by id: number of the file, of the row
        self._num_rows = self._num_taken = self._num_unlabelled = self._num_skipped = 0
        self._first_skipped = ""
        self._first_bad_label: tuple[str, str] | None = None  # of a test split: where, and why
        self._drops_unlabelled = False

    def __iter__(self) -> Iterator[Example]:
        for source in self.sources:
            if not self._is_full:
                try:
                    with open_table(source, self.task, self.split, self.name) as table:
                        yield from self._examples(table)
                except FileNotFoundError:
                    raise DataError(missing_file(source, self.task, self.name)) from None

    def finish(self) -> ReadReport:
        """How the rows were read, once all are. DataError where there are none."""
        note = self._settle_labels(*self._first_bad_label) if self._first_bad_label else ""
        num_rows = self._num_taken - self._num_unlabelled * self._drops_unlabelled
        first, skipped = self._tables[0], (self._num_skipped, self._first_skipped)
        report = ReadReport(first.name, num_rows, *skipped, len(self.sources), note)
        if not num_rows:
            problem = f"no row of task '{self.name}' can be used ({report.message()})"
            raise DataError(f"{first.header}: {problem}")
        return report

    def is_dropped(self, example: Example) -> bool:
        """Whether an example does not count after all, as ``finish`` has found."""
        return self._drops_unlabelled and example.label is None

    @property
    def _is_full(self) -> bool:
        """Whether ``max_rows`` are read."""
        return self.task.max_rows is not None and self._num_taken >= self.task.max_rows

    def _examples(self, table: Table) -> Iterator[Example]:
        """The rows of one more file."""
        self._tables.append(table)
        columns = _Columns.of(table, self.task, self.split, self.name)
        for row in table.rows(columns.names):
            self._num_rows += 1
            if self._num_rows % _ROWS_PER_TICK == 0:
                self._tick()
            try:
                example = self._example(row, columns)
            except BadRow as reason:
                self._leave_out(table.place(row[0]), str(reason))
            else:
                self._num_taken += 1
                self._num_unlabelled += example.label is None
                yield example
            if self._is_full:
                return

    def _example(self, row: Row, columns: _Columns) -> Example:
        number, cells = row
        if isinstance(cells, BadRow):
            raise cells
        remaining = iter(cells)
        id = str(self._num_rows)
        if columns.id is not None:
            id = read_id(next(remaining), columns.id)
        texts = tuple(read_text(next(remaining), column) for column in columns.texts)
        label = None if columns.label is None else self._label(next(remaining), number)
        if columns.id is not None:
            self._refuse_duplicate(id, number)
        return Example(id, texts, label)

    def _label(self, cell: object, number: int) -> float | None:
        try:
            return self.read_label(cell)
        except BadRow as reason:
            if self.split != "test":
                raise
            place = self._tables[-1].place(number)
            self._first_bad_label = self._first_bad_label or (place, str(reason))
            return None

    def _refuse_duplicate(self, id: str, number: int) -> None:
        here = (len(self._tables) - 1, number)
        first = self._seen.setdefault(id, here)
        if first == here:
            return
        table = self._tables[first[0]]
        where = table.place(first[1]).rpartition(":")[2].strip()
        where = f"line {where}" if where.isdigit() else where
        if first[0] != here[0]:
            where += f" of {shown(table.name)}"
        raise BadRow(f"id '{shown(id)}' is already in {where}")

    def _leave_out(self, place: str, reason: str) -> None:
        """Counts a row that is left out, or DataError."""
        if self.task.on_bad_row != "skip":
            raise DataError(
                f"{place}: {reason}; correct the row, or set "
                f"tasks.{self.name}.on_bad_row to 'skip' to leave such rows out"
            ) from None
        self._num_skipped += 1
        self._first_skipped = self._first_skipped or f"{self._short(place)}: {printable(reason)}"

    def _settle_labels(self, place: str, reason: str) -> str:
        """A test split without any label is one without labels; otherwise each must be there."""
        if self._num_unlabelled == self._num_taken:
            return (
                f"{self.name} test: taken as a split without labels, since no row has one "
                f"({self._short(place)}: {reason})"
            )
        if self._num_unlabelled:
            self._drops_unlabelled = True
            self._leave_out(place, reason)
            self._num_skipped += self._num_unlabelled - 1
        return ""

    def _short(self, place: str) -> str:
        """A place without its folder."""
        folder = next((t.folder for t in self._tables if place.startswith(t.folder)), "")
        return printable(place.removeprefix(folder))
