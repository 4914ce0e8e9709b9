"""Rows of cells, however a file stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

# A number for messages, counted from 1, and the row's cells, or why they cannot be read.
Row = tuple[int, "list[Any] | BadRow"]


class BadRow(Exception):
    """Why one row cannot be used; the reader adds file and line."""


class Table(Protocol):
    """One file of rows.

    Attributes:
        name: of the file, without its folder. folder: with ``/`` behind it; may be empty.
        columns: their names, as the header or the first row has them.
        header: where they are named, such as ``a.csv:1``.
        read_as: how the file is read, such as ``tab-separated``.
    """

    name: str
    folder: str
    columns: list[str]
    header: str
    read_as: str

    def place(self, number: int) -> str:
        """Where a row is, such as ``a.csv:7`` or ``a.parquet: row 6``."""
        ...

    def hint(self) -> str:
        """What else the file may be, where a column is missing; empty if nothing suggests it."""
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, once, with the cells of these columns, in their order."""
        ...


class FileTable:
    """What the tables of files share; places are lines, counted from 1."""

    def __init__(self, path: Path):
        self.path, self.name, self.folder = path, path.name, f"{path.parent}/"

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def hint(self) -> str:
        return ""
