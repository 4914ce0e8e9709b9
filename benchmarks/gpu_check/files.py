"""What a call of the check brings back: few files, none large, no deep folders."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from benchmarks.harness.results import STAGE_RESULT
from sbrrt_fast.files import replacing

MOST_FILES, MOST_BYTES, MOST_FOLDERS = 8, 16 * 2**20, 2
LOG_BYTES = 2**20  # of each file in the archive, the last ones
RESULT_BYTES = 2**19
FAILURES, TEXT = 40, 1500  # told in full, and characters of each


def archive(folder: Path, path: Path) -> None:
    """Packs the last megabyte of every file, replacing an older archive whole."""
    with replacing(path) as fresh, tarfile.open(fresh, "w:gz", compresslevel=3) as packed:
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            tail = _tail(file)
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = len(tail)
            packed.addfile(entry, BytesIO(tail))


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read(LOG_BYTES)


def excess(output: Path) -> list[str]:
    """What is too much to come back, in words."""
    files = [path for path in output.rglob("*") if path.is_file()]
    lines = [f"{len(files)} files, of {MOST_FILES} at most"] if len(files) > MOST_FILES else []
    for path in files:
        place = path.relative_to(output)
        if len(place.parts) - 1 > MOST_FOLDERS:
            lines.append(f"{place} lies more than {MOST_FOLDERS} folders down")
        if path.stat().st_size > MOST_BYTES:
            lines.append(f"{place} is larger than {MOST_BYTES >> 20} MiB")
    return lines


def result_of(folder: Path) -> dict | None:
    """What a stage left in its folder: its ``result.json``, and its tests one by one."""
    path, tests = folder / STAGE_RESULT, folder / "tests.jsonl"
    result: dict = {}
    if path.exists() and path.stat().st_size <= RESULT_BYTES:
        result |= json.loads(path.read_text(encoding="utf-8"))
    if tests.exists():
        result["tests"] = summary(tests)
    return result or None


def summary(path: Path) -> dict:
    """Of what ``live_log`` wrote: how many passed, which failed and why, which go on."""
    started, ended, texts = set(), {}, {}
    for entry in _entries(path):
        test, what = entry["test"], entry["what"]
        if what == "started":
            started.add(test)
        elif ended.get(test) != "failed":  # also where the worker died of it afterwards
            ended[test] = what
            texts |= {test: entry["text"][-TEXT:]} if what == "failed" else {}
    counts = {what: list(ended.values()).count(what) for what in ("passed", "failed", "skipped")}
    failures = [{"test": test, "text": text} for test, text in texts.items()]
    unended = sorted(started - ended.keys())
    return counts | {"failures": failures[:FAILURES], "not ended": unended[:FAILURES]}


def _entries(path: Path) -> Iterator[dict]:
    """The last line may be half written."""
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            continue
