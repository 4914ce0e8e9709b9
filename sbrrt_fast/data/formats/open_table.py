"""The table in a file, whatever its format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sbrrt_fast.data.formats.compression import ending, is_compressed
from sbrrt_fast.data.formats.delimited import open_delimited
from sbrrt_fast.data.formats.hub_dataset import DatasetSplit, open_dataset
from sbrrt_fast.data.formats.json_lines import open_json_lines
from sbrrt_fast.data.formats.parquet import open_parquet
from sbrrt_fast.data.formats.table import Table
from sbrrt_fast.data.task import Split, TaskConfig
from sbrrt_fast.errors import DataError

_FORMATS = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SEPARATORS = {"tsv": "\t", "csv": ","}


def open_table(
    source: Path | DatasetSplit, task: TaskConfig, split: Split, name: str
) -> AbstractContextManager[Table]:
    """The rows of a file of task ``name``, to be closed.

    ``format: auto`` goes by the ending; a file that ends in ``.csv``, ``.txt`` or anything else is
    separated by tabs or by commas, as its header is.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it cannot be read as what it is taken for.
    """
    if isinstance(source, DatasetSplit):
        return nullcontext(open_dataset(source, name))
    format = _FORMATS.get(ending(source)) if task.format == "auto" else task.format
    if format == "parquet":
        if is_compressed(source):
            raise DataError(f"{source}: Parquet is compressed in itself; decompress the file")
        return open_parquet(source)
    if format == "jsonl":
        return open_json_lines(source)
    needed = [*task.text_columns, *([] if split == "test" else [task.label_column])]
    return open_delimited(source, name, _SEPARATORS.get(format or ""), needed, task.quoting)
