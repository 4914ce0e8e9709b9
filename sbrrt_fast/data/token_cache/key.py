"""The name of an entry: a checksum of all that decides what is in it.

Another file, tokenizer, setting or version is another entry, so none ever has to be marked as old.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from sbrrt_fast.data.formats.compression import open_regular
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.token_cache.record import FORMAT

_CHUNK = 1 << 24  # bytes

# Fields of ``TaskConfig`` that change no row. Paths do not count, for the files' contents do.
NOT_READ = {
    *("files", "split_seed", "train_rows", "label_noise"),  # what they do is in the key
    *("loss", "class_weights", "label_smoothing", "metric", "metrics"),
    *("weight", "dropout", "train", "prediction_file", "prediction_header"),
}


def cache_key(rows: SplitRows, settings: dict[str, Any]) -> str:
    """64 hexadecimal digits.

    Args:
        settings: JSON values that an entry depends on besides the rows.

    Raises:
        FileNotFoundError: a file of the split is not there.
        DataError: one is no regular file, or cannot be read.
    """
    parts = {**row_settings(rows), **settings}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def row_settings(rows: SplitRows) -> dict[str, Any]:
    """All that decides which rows a split has, as JSON values."""
    task = {name: x for name, x in asdict(rows.task).items() if name not in NOT_READ}
    share = rows.share
    return {
        "versions": versions(),
        "files": [[path.name, _sha256_of(path, rows.tick)] for path in rows.sources],
        "split": rows.split,
        "share": None if share is None else [*share, rows.task.split_seed],
        "train_part": _train_part(rows),
        "task": [rows.name, task],
    }


def _train_part(rows: SplitRows) -> list[float | None] | None:
    """What decides which training rows are taken, and with which labels."""
    if not rows.has_train_part:
        return None
    return [rows.task.train_rows, rows.task.label_noise, rows.task.split_seed]


def token_settings(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """All that decides which tokens a row has, as JSON values."""
    settings = tokenizer.to_str().encode()
    return {"tokenizer": hashlib.sha256(settings).hexdigest(), "max_length": max_length}


def versions() -> dict[str, Any]:
    """Versions of what reads and tokenises."""
    return {
        "format": FORMAT,
        "sbrrt_fast": _own_version(),
        "tokenizers": tokenizers.__version__,
        "unicode": unicodedata.unidata_version,
    }


def stamps(rows: SplitRows) -> list[tuple[int, int, int]]:
    """Of each file its inode, size and time of change, which differ where it was written to."""
    found = [os.stat(path) for path in rows.sources]
    return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in found]


def _own_version() -> str:
    try:
        return metadata.version("sbrrt_fast")
    except metadata.PackageNotFoundError:  # it runs from a folder that nobody installed
        return ""


def _sha256_of(path: Path, tick: Callable[[], object]) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_CHUNK):
            digest.update(block)
            tick()
    return digest.hexdigest()
