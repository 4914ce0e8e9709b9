"""Hugging Face datasets, from the hub or a folder, by the ``datasets`` library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sbrrt_fast.data.formats.optional import import_optional
from sbrrt_fast.data.formats.table import Row
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import shown

_ROWS_PER_BATCH = 2048
_SAVED = ("dataset_dict.json", "state.json")  # in what ``save_to_disk`` writes


@dataclass(frozen=True)
class DatasetSplit:
    """One split of a dataset.

    Attributes:
        dataset: a name on the hub, or a folder, which is absolute.
        config: its configuration, or empty.
        split: its name for the library, such as ``validation`` or ``train[:10%]``.
    """

    dataset: str
    config: str
    split: str

    @property
    def is_folder(self) -> bool:
        return os.path.isabs(self.dataset)

    def __str__(self) -> str:
        config = f" ({self.config})" if self.config else ""
        return f"dataset {self.dataset}{config}, split {self.split}"


def open_dataset(source: DatasetSplit, task_name: str) -> DatasetTable:
    """The table of a dataset's split.

    Raises:
        DataError: ``datasets`` is not installed, or there is no such dataset or split.
    """
    datasets = import_optional("datasets", "datasets", f"task '{task_name}': a dataset")
    try:
        rows = _load(datasets, source)
    except Exception as error:  # the library raises whatever its readers raise
        reason = shown(str(error).strip().partition("\n")[0] or type(error).__name__, 300)
        advice = f"correct tasks.{task_name}.dataset, dataset_config or files"
        raise DataError(f"{source}: cannot be loaded ({reason}); {advice}") from None
    return DatasetTable(source, rows)


def _load(datasets: ModuleType, source: DatasetSplit) -> Any:
    saved = [name for name in _SAVED if (Path(source.dataset) / name).is_file()]
    if not source.is_folder or not saved:
        return datasets.load_dataset(source.dataset, source.config or None, split=source.split)
    if saved[0] == "state.json":
        raise ValueError("the folder holds one split; save a DatasetDict, which names its splits")
    splits = datasets.load_from_disk(source.dataset)
    if source.split not in splits:
        raise ValueError(f"its splits are {', '.join(splits)}")
    return splits[source.split]


class DatasetTable:
    """See ``formats.table.Table``; rows are counted from 1.

    The classes of a ``ClassLabel`` column have their names; -1 there is no label.
    """

    read_as, folder = "a dataset", ""

    def __init__(self, source: DatasetSplit, rows: Any):
        self.name = self.header = str(source)
        self._source, self._rows = source, rows.with_format(None)
        self.columns = list(rows.column_names)

    def place(self, number: int) -> str:
        return f"{self._source}: row {number}"

    def hint(self) -> str:
        return ""

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names of a ``ClassLabel`` column's classes; empty for another column."""
        return tuple(getattr(self._rows.features[column], "names", ()))

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        names = [self.class_names(column) for column in columns]
        number = 0
        for batch in self._rows.select_columns(list(dict.fromkeys(columns))).iter(_ROWS_PER_BATCH):
            for cells in zip(*(batch[column] for column in columns), strict=True):
                number += 1
                yield number, [_named(c, n) for c, n in zip(cells, names, strict=True)]


def _named(cell: Any, names: tuple[str, ...]) -> Any:
    if not names or cell is None:
        return cell
    return names[cell] if 0 <= cell < len(names) else None
