"""One folder of the cache: a tokenised split as ``.npy`` files and a list of them.

``entry.json`` comes last, so a folder without it is none. No file holds pickled objects.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.token_cache.array_file import ArrayWriter, mapped
from sbrrt_fast.data.token_cache.key import FORMAT
from sbrrt_fast.data.token_cache.strings import StringArray, TextRows
from sbrrt_fast.data.tokens import TokenChunk

ENTRY = "entry.json"
_DTYPES: dict[str, type] = {
    "labels": np.float32,
    "tokens": np.int32,
    "token_types": np.int8,
    "special": np.bool_,
    "starts": np.int64,
    "ids": np.uint8,
    "id_starts": np.int64,
    "texts": np.uint8,
    "text_starts": np.int64,
}


class EntryWriter:
    """Fills an empty folder with a split, chunk by chunk."""

    def __init__(self, folder: Path, stack: ExitStack):
        self._folder = folder
        self._files = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", dtype))
            for name, dtype in _DTYPES.items()
        }
        self._ends = dict.fromkeys(("starts", "id_starts", "text_starts"), 0)
        self._num_truncated, self._has_labels = 0, True
        for name in self._ends:
            self._files[name].append(np.zeros(1, np.int64))

    def append(self, chunk: TokenChunk) -> None:
        """Adds some rows."""
        for name in ("tokens", "token_types", "special"):
            self._files[name].append(getattr(chunk, name))
        self._append_starts("starts", chunk.lengths)
        self._append_strings("id", [example.id for example in chunk.examples])
        texts = chain.from_iterable(example.texts for example in chunk.examples)
        self._append_strings("text", list(texts))
        labels = [example.label for example in chunk.examples]
        self._has_labels = self._has_labels and None not in labels
        self._files["labels"].append(np.array(labels, dtype=np.float32))  # None is NaN
        self._num_truncated += chunk.num_truncated

    def finish(self, key: str, report: ReadReport | None) -> None:
        """Writes the list, which makes the folder an entry."""
        facts = {
            "format": FORMAT,
            "key": key,
            "num_truncated": self._num_truncated,
            "has_labels": self._has_labels,
            "report": None if report is None else asdict(report),
            "files": {name: file.finish() for name, file in self._files.items()},
        }
        record = {"made_by": "sbrrt_fast", "crc32": _crc32_of(facts), "entry": facts}
        text = json.dumps(record, indent=2) + "\n"
        (self._folder / ENTRY).write_text(text, encoding="utf-8")

    def _append_strings(self, name: str, strings: list[str]) -> None:
        encoded = [string.encode() for string in strings]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        self._files[f"{name}s"].append(np.frombuffer(b"".join(encoded), np.uint8))
        self._append_starts(f"{name}_starts", lengths)

    def _append_starts(self, name: str, lengths: np.ndarray) -> None:
        starts = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._files[name].append(starts)
        self._ends[name] = int(starts[-1])


def write_entry(
    folder: Path, key: str, chunks: Iterable[TokenChunk], report: Callable[[], ReadReport | None]
) -> None:
    """Fills an empty folder.

    Args:
        report: gives the split's, once all chunks are there.

    Raises:
        OSError: the system refuses; also what the chunks raise.
    """
    with ExitStack() as stack:
        writer = EntryWriter(folder, stack)
        for chunk in chunks:
            writer.append(chunk)
        writer.finish(key, report())


def read_entry(
    folder: Path, key: str, rows: SplitRows, tick: Callable[[], object]
) -> TokenizedTask | None:
    """The split in a folder, in memory that is shared with all who read it; None without one.

    Raises:
        ValueError: saying what is damaged. OSError: it cannot be read.
    """
    try:
        facts = _facts(folder / ENTRY, key)
        arrays = {
            name: mapped(folder / f"{name}.npy", facts["files"][name], tick) for name in _DTYPES
        }
    except FileNotFoundError as error:
        if folder.is_dir():
            raise ValueError(f"{Path(error.filename or ENTRY).name} is missing") from None
        return None
    tensors = ("tokens", "token_types", "special", "starts")
    texts = StringArray(arrays["texts"], arrays["text_starts"])
    return TokenizedTask(
        name=rows.name,
        config=rows.task,
        split=rows.split,
        ids=StringArray(arrays["ids"], arrays["id_starts"]),
        labels=torch.from_numpy(arrays["labels"]) if facts["has_labels"] else None,
        num_truncated=facts["num_truncated"],
        texts=TextRows(texts, len(rows.task.text_columns)),
        report=facts["report"] and ReadReport(**facts["report"]),
        **{name: torch.from_numpy(arrays[name]) for name in tensors},
    )


def _facts(path: Path, key: str) -> dict[str, Any]:
    """What ``finish`` wrote of an entry. ValueError where it is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        facts, checksum = record["entry"], record["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{ENTRY} is not what was written") from None
    if checksum != _crc32_of(facts) or (facts["format"], facts["key"]) != (FORMAT, key):
        raise ValueError(f"{ENTRY} is not what was written")
    return facts


def _crc32_of(facts: Any) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
