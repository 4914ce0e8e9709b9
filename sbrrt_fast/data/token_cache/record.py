"""The last file of an entry: what the entry holds, as JSON with a checksum of itself."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

RECORD = "entry.json"
FORMAT = 1  # of entries; raise it where the same files would be stored as something else


def write_record(folder: Path, key: str, content: dict[str, Any]) -> None:
    """Makes a folder an entry; ``content`` is of JSON values."""
    entry = {"format": FORMAT, "key": key, **content}
    record = {"made_by": "sbrrt_fast", "crc32": _crc32_of(entry), "entry": entry}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path, key: str) -> dict[str, Any] | None:
    """The content of an entry; None where there is none.

    Raises:
        ValueError: it is not what was written. OSError: it cannot be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        entry, checksum = record["entry"], record["crc32"]
    except FileNotFoundError:
        if folder.is_dir():
            raise ValueError(f"{RECORD} is missing") from None
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{RECORD} is not what was written") from None
    if checksum != _crc32_of(entry) or (entry["format"], entry["key"]) != (FORMAT, key):
        raise ValueError(f"{RECORD} is not what was written")
    return entry


def _crc32_of(entry: Any) -> int:
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())
