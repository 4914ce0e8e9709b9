"""Parquet files, a few thousand rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sbrrt_fast.data.formats.compression import open_regular
from sbrrt_fast.data.formats.optional import import_optional
from sbrrt_fast.data.formats.table import BadRow, FileTable, Row
from sbrrt_fast.errors import DataError

_ROWS_PER_BATCH = 2048


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetTable]:
    """The table of a Parquet file.

    Raises:
        FileNotFoundError: it is not there.
        DataError: pyarrow is not installed, or it cannot read the file, also while rows are read.
    """
    parquet = import_optional("pyarrow.parquet", "parquet", f"{path}: a Parquet file")
    arrow = import_optional("pyarrow", "parquet", f"{path}: a Parquet file")
    with open_regular(path) as file:
        try:
            yield ParquetTable(path, parquet.ParquetFile(file))
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: cannot be read as a Parquet file ({reason}); write it again"
            ) from None


class ParquetTable(FileTable):
    """See ``formats.table.Table``; rows are counted from 1."""

    read_as = "Parquet"

    def __init__(self, path: Path, file: Any):
        super().__init__(path)
        self.header, self._file = str(path), file
        self.columns = list(file.schema_arrow.names)

    def place(self, number: int) -> str:
        return f"{self.path}: row {number}"

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        batches = self._file.iter_batches(_ROWS_PER_BATCH, columns=list(dict.fromkeys(columns)))
        number = 0
        for batch in batches:
            for cells in zip(*(cell_values(batch.column(c)) for c in columns), strict=True):
                number += 1
                bad = next((cell for cell in cells if isinstance(cell, BadRow)), None)
                yield number, bad or list(cells)


def cell_values(column: Any) -> list[Any]:
    """The Python values of an Arrow array; BadRow where a text is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell_value(cell) for cell in column]


def _cell_value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return BadRow("a text is not UTF-8")
