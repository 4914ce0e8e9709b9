"""Comma- and tab-separated text, quoted the CSV way (``""`` inside ``"..."``) or not at all."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

from sbrrt_fast.data.cells import MAX_FIELD, is_visible
from sbrrt_fast.data.formats.compression import open_bytes
from sbrrt_fast.data.formats.table import BadRow, FileTable, Row
from sbrrt_fast.data.text_file import check_text_file, open_text, read_lines
from sbrrt_fast.errors import DataError

Separator = Literal["\t", ","]
NAMES: dict[str, str] = {"\t": "tab-separated", ",": "comma-separated"}
_FORMATS = {"\t": "tsv", ",": "csv"}
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_MOST_SEEN = 64  # different values of a column that may be one of labels
_csv_is_in_use = threading.Lock()  # its field limit is one for the whole process


@contextmanager
def open_delimited(
    path: Path, task_name: str, separator: Separator | None, needed: Sequence[str], quoting: str
) -> Iterator[DelimitedTable]:
    """The table of a delimited file.

    Args:
        separator: None takes the one by which the header has the ``needed`` columns, else the one
            that is in the header.
        quoting: ``csv``, or ``none`` where a quote is a character like any other.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is empty, is no text, has no header, a line that is too long, or, while rows
            are read, a quoted field that swallows following lines.
    """
    check_text_file(path)
    with open_bytes(path) as file, open_text(file) as text, _field_limit():
        lines = read_lines(path, text)
        start = _to_header(lines)
        chosen = separator or _separator(start[-1], needed)
        yield DelimitedTable(path, task_name, chosen, quoting, start[-1], chain(start, lines))


class DelimitedTable(FileTable):
    """See ``formats.table.Table``.

    Args:
        first_line: the header's. lines: all of the file.
    """

    def __init__(
        self,
        path: Path,
        task_name: str,
        separator: Separator,
        quoting: str,
        first_line: str,
        lines: Iterator[str],
    ):
        super().__init__(path)
        self.task_name, self.separator = task_name, separator
        self.read_as, self._first_line = NAMES[separator], first_line
        mode = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
        self._reader = csv.reader(lines, delimiter=separator, quoting=mode, strict=True)
        self._rows = self._parse()
        line, header = next(self._rows, (1, BadRow("there is none")))
        self.header = self.place(line)
        if isinstance(header, BadRow):
            raise DataError(
                f"{self.header}: no header line, {header}; it has to name the columns of "
                f"'{task_name}'"
            )
        self.columns = header

    def hint(self) -> str:
        if self._first_line.lstrip().startswith("{"):
            return f"is this a file of JSON lines? set tasks.{self.task_name}.format to 'jsonl'"
        if self.separator in self._first_line:
            return ""
        for other, name in {",": "comma-separated", "\t": "tab-separated"}.items():
            if other in self._first_line:
                question = f"is this a {name} file? set tasks.{self.task_name}.format to"
                return f"{self._missing()}; {question} '{_FORMATS[other]}'"
        if ";" in self._first_line:
            return f"{self._missing()}; if it is separated by ';', save it with commas"
        return ""

    def _missing(self) -> str:
        return f"no {'tab' if self.separator == chr(9) else 'comma'} in the header"

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        positions = [self.columns.index(column) for column in columns]
        for line, fields in self._rows:
            if isinstance(fields, BadRow):
                yield line, fields
            elif len(fields) != len(self.columns):
                yield line, BadRow(self._miscounted(len(fields)))
            else:
                yield line, [fields[position] for position in positions]

    def _miscounted(self, count: int) -> str:
        reason = f"{count} fields where the header has {len(self.columns)} ({self.read_as}"
        if self.separator == "," and count > len(self.columns):
            return f'{reason}: a field with a comma in it is written "...")'
        return f"{reason})"

    def _parse(self) -> Iterator[tuple[int, list[str] | BadRow]]:
        """Yield (line the row starts in, fields, or why they cannot be read); no blank lines.

        Only a row that runs over several lines can hide others, so that is where it raises
        DataError: an unclosed quote makes ``csv`` take whole rows for one field.
        """
        num_fields, swallowed = None, _SwallowedRows(self.separator)
        while True:
            line = self._reader.line_num + 1
            try:
                fields: list[str] | BadRow = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields = BadRow(_reason(str(error), self.task_name))
            is_one_line = self._reader.line_num == line
            if is_one_line and _is_blank(fields):
                continue
            num_fields = num_fields or _count(fields)
            if not is_one_line and swallowed.are_in(fields, num_fields):
                raise DataError(self._swallowed(line))
            if isinstance(fields, list):
                swallowed.note(fields)
            yield line, fields

    def _swallowed(self, line: int) -> str:
        return (
            f"{self.path}:{line}: a quote opened in this row is not closed and takes in the lines "
            f"to {self._reader.line_num}; close it, double it ('\"\"') inside a quoted field, or "
            f"set tasks.{self.task_name}.quoting to 'none' if fields are never quoted"
        )


@contextmanager
def _field_limit() -> Iterator[None]:
    with _csv_is_in_use:
        before = csv.field_size_limit(MAX_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _to_header(lines: Iterator[str]) -> list[str]:
    """The first lines, to the first that is not blank; a checked file has one."""
    start = []
    for line in lines:
        start.append(line)
        if is_visible(line):
            break
    return start or [""]


def _separator(header: str, needed: Sequence[str]) -> Separator:
    """The one by which the header has the columns, else the one that is there, else a tab."""
    for separator in ("\t", ","):
        try:
            columns = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            continue
        if set(needed) <= set(columns):
            return separator
    return "," if "," in header and "\t" not in header else "\t"


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


def _is_blank(fields: list[str] | BadRow) -> bool:
    return isinstance(fields, list) and len(fields) <= 1 and not is_visible("".join(fields))


def _count(fields: list[str] | BadRow) -> int:
    return len(fields) if isinstance(fields, list) else 0


class _SwallowedRows:
    """Looks for rows inside a field that runs over several lines.

    An unclosed quote makes ``csv`` take whole rows for one field. Its separators are then those of
    whole rows. Text has commas too, so with these a column must also have values that it had
    before: labels are few.
    """

    def __init__(self, separator: Separator):
        self.separator = separator
        self._seen: list[set[str] | None] = []  # by column; None where they are many

    def note(self, fields: list[str]) -> None:
        """Remembers the values of a row."""
        if self.separator == "\t":
            return
        self._seen = self._seen or [set() for _ in fields]
        for column, (seen, field) in enumerate(zip(self._seen, fields, strict=False)):
            if seen is not None:
                seen.add(field)
                if len(seen) > _MOST_SEEN:
                    self._seen[column] = None

    def are_in(self, fields: list[str] | BadRow, num_fields: int) -> bool:
        """Whether a row over several lines holds other rows."""
        if isinstance(fields, BadRow) or len(fields) != num_fields:
            return True
        return any(self._are_in_field(fields, column) for column in range(num_fields))

    def _are_in_field(self, fields: list[str], column: int) -> bool:
        lines = _LINE_BREAK.split(fields[column])
        if len(lines) == 1:
            return False
        parts = [line.split(self.separator) for line in lines]
        rows = [[*fields[:column], *parts[0]], *parts[1:-1], [*parts[-1], *fields[column + 1 :]]]
        if any(len(row) != len(fields) for row in rows):
            return False
        return self.separator == "\t" or self._have_known_values(rows, fields, column)

    def _have_known_values(self, rows: list[list[str]], fields: list[str], column: int) -> bool:
        for i, field in enumerate(fields):
            known = (self._seen[i] if i < len(self._seen) else None) or set()
            own = set() if i == column else {field}
            if all(row[i] in known or row[i] in own for row in rows):
                return True
        return False
