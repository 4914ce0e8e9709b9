"""A tokenised split as an entry's folder: ``.npy`` files, and the record that lists them.

The record comes last, so a folder without it is no entry. No file holds pickled objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.token_cache.array_file import ArrayWriter, mapped
from sbrrt_fast.data.token_cache.record import read_record, write_record
from sbrrt_fast.data.token_cache.strings import StringArray, TextRows
from sbrrt_fast.data.tokens import TokenChunk

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
        content = {
            "num_truncated": self._num_truncated,
            "has_labels": self._has_labels,
            "report": None if report is None else asdict(report),
            "files": {name: file.finish() for name, file in self._files.items()},
        }
        write_record(self._folder, key, content)

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


def read_entry(folder: Path, key: str, rows: SplitRows) -> TokenizedTask | None:
    """The split in a folder, in memory that is shared with all who read it; None without one.

    Raises:
        ValueError: saying what is damaged. OSError: it cannot be read.
    """
    facts = read_record(folder, key)
    if facts is None:
        return None
    arrays = {
        name: mapped(folder / f"{name}.npy", facts["files"][name], rows.tick) for name in _DTYPES
    }
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
