"""JSON lines: an object per line, whose keys are the columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from sbrrt_fast.data.cells import is_visible
from sbrrt_fast.data.formats.compression import open_bytes
from sbrrt_fast.data.formats.table import BadRow, FileTable, Row
from sbrrt_fast.data.text_file import check_text_file, open_text, read_lines
from sbrrt_fast.errors import DataError
from sbrrt_fast.json_file import kind_of


@contextmanager
def open_json_lines(path: Path) -> Iterator[JsonLinesTable]:
    """The table of a file of JSON lines; its columns are the first object's keys.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is empty, is no text, has a line that is too long, or no object in its first.
    """
    check_text_file(path)
    with open_bytes(path) as file, open_text(file) as text:
        yield JsonLinesTable(path, read_lines(path, text))


class JsonLinesTable(FileTable):
    """See ``formats.table.Table``; a column that a row lacks is None there."""

    read_as = "JSON lines"

    def __init__(self, path: Path, lines: Iterator[str]):
        super().__init__(path)
        objects = _objects(lines)
        line, first = next(objects, (1, BadRow("there is none")))
        self.header = self.place(line)
        if isinstance(first, BadRow):
            raise DataError(f"{self.header}: {first}; JSON lines have an object in every line")
        self.columns = list(first)
        self._objects = chain([(line, first)], objects)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for line, content in self._objects:
            if isinstance(content, BadRow):
                yield line, content
            else:
                yield line, [content.get(column) for column in columns]


def _objects(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for number, line in enumerate(lines, start=1):
        if is_visible(line):
            yield number, _object(line)


def _object(line: str) -> dict[str, Any] | BadRow:
    try:
        content = json.loads(line)
    except RecursionError:
        return BadRow("not JSON that can be read: it is nested too deeply")
    except ValueError as error:
        if line.lstrip().startswith("[") and line.rstrip() in ("[", "[{"):
            return BadRow("the file is one JSON array; write its objects one a line")
        return BadRow(f"not JSON ({error})")
    if not isinstance(content, dict):
        return BadRow(f"no JSON object, but {kind_of(content)}")
    return content
