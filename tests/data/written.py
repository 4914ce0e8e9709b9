"""Task files in every format, written by the libraries that people write them with."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from sbrrt_fast.data.task import TaskConfig

COLUMNS = ("id", "premise", "hypothesis", "label")
LABELS = ("contradiction", "entailment", "neutral")
ENTAILMENT = TaskConfig(
    files={"train": "train.csv", "dev": "dev.csv"},
    text_columns=("premise", "hypothesis"),
    label_column="label",
    head="classes",
    encoding="cross",
)
ROWS = [
    (f"r{i}", f'A "fine", film {i}', f"tab\there, \u00fcber {i}", LABELS[(i + 2) % 3])
    for i in range(12)
]
COMPRESSED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def optional(module: str) -> ModuleType:
    """A library that some formats need; skips the test where it is absent."""
    return pytest.importorskip(module, reason=f"{module} is not installed; `make env` installs it")


def write_table(path: Path, rows: Sequence[Sequence], columns: Sequence[str] = COLUMNS) -> Path:
    """Writes rows as the path's ending says, compressed where it has a second one."""
    compress = COMPRESSED.get(path.suffix)
    if path.suffix == ".zst":
        compress = optional("zstandard").compress
    plain = path.with_suffix("") if compress else path
    _WRITERS[plain.suffix](plain, rows, columns)
    if compress:
        path.write_bytes(compress(plain.read_bytes()))
        plain.unlink()
    return path


def _delimited(separator: str):
    def write(path: Path, rows: Sequence[Sequence], columns: Sequence[str]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(columns)
            writer.writerows(rows)

    return write


def _json_lines(path: Path, rows: Sequence[Sequence], columns: Sequence[str]) -> None:
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def _parquet(path: Path, rows: Sequence[Sequence], columns: Sequence[str]) -> None:
    pyarrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")
    arrays = [pyarrow.array(column) for column in zip(*rows, strict=True)]
    parquet.write_table(pyarrow.table(arrays, names=list(columns)), path)


_WRITERS = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
