"""Seeded damage to the files of a folder, and what a reader may do with it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sbrrt_fast.errors import SbrrtError

_ODD_VALUES = [
    *(None, True, False, 0, -1, 1, 3, 10**12, 2**63, 1e308, float("nan"), float("inf"), 0.5),
    *("", "x", "0", "true", "\0", "\U0001f600" * 40, "../..", "/etc/passwd"),
    *([], {}, [[]], [1, "a"], {"a": None}),
]


def damage(folder: Path, rng: random.Random) -> str:
    """Changes one file of a folder; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    kinds: list[Callable[[Path, random.Random], str]] = [_truncate, _delete, _flip]
    kinds += [_mutate_json] * 4 if path.suffix == ".json" else [_flip_header] * 3
    return f"{path.relative_to(folder)}: {rng.choice(kinds)(path, rng)}"


def _truncate(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    kept = rng.choice([0, 1, 7, 8, 9, size - 1, rng.randrange(size)])
    path.write_bytes(path.read_bytes()[:kept])
    return f"cut to {kept} of {size} bytes"


def _delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _flip(path: Path, rng: random.Random) -> str:
    return _flip_bit(path, rng.randrange(path.stat().st_size), rng)


def _flip_header(path: Path, rng: random.Random) -> str:
    """In a safetensors file's length and header; the first bytes of any other."""
    return _flip_bit(path, rng.randrange(min(path.stat().st_size, 4000)), rng)


def _flip_bit(path: Path, index: int, rng: random.Random) -> str:
    data, bit = bytearray(path.read_bytes()), rng.randrange(8)
    data[index] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {index} flipped"


def _mutate_json(path: Path, rng: random.Random) -> str:
    value = json.loads(path.read_text(encoding="utf-8"))
    holders = list(_holders(value))
    if not holders or rng.random() < 0.15:
        value, what = rng.choice(_ODD_VALUES), "the whole"
    else:
        holder, key = rng.choice(holders)
        what = f"{key!r}"
        if rng.random() < 0.25:
            del holder[key]
            what += " removed"
        else:
            holder[key] = rng.choice(_ODD_VALUES)
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = text.replace("{", '{"deep": ' + "[" * 3000 + "]" * 3000 + ",", 1)
        what += " and nested"
    path.write_text(text, encoding="utf-8")
    return f"{what} -> {text[:60]}"


def _holders(value: Any, limit: int = 40):
    """(container, key) of the places in a JSON value; the first ``limit`` of each container."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in list(keys)[:limit]:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _holders(value[key], limit)


def try_damaged(
    original: Path, place: Path, seed: int, load: Callable[[Path], Any], same: Callable[[Any], str]
) -> str:
    """Damages a copy and loads it; ``refused``, ``loaded``, or what is wrong about the answer.

    Args:
        load: reads the folder; may raise SbrrtError alone.
        same: what is wrong with a loaded thing, given what is stored, or an empty string.
    """
    folder = place / f"damaged{seed}"
    shutil.copytree(original, folder)
    done = damage(folder, random.Random(seed))
    before = _contents(folder)
    try:
        loaded = load(folder)
    except SbrrtError as error:
        message = str(error)
        is_line = "\n" not in message and len(message) < 1500
        answer = "refused" if is_line and str(folder) in message else f"{done}: {message[:300]}"
    except BaseException as error:
        answer = f"{done}: {type(error).__name__}: {str(error)[:300]}"
    else:
        answer = f"{done}: {wrong}" if (wrong := same(loaded)) else "loaded"
    if _contents(folder) != before:
        answer = f"{done}: reading changed the folder"
    shutil.rmtree(folder)
    return answer


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
