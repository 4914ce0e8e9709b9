"""Calls of ``sbrrt-fast reproduce`` with quick runs, and what they write."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import tiny_backbone


def quick_flags(folder: Path) -> list[str]:
    """Flags of quick runs, with a small backbone that is made in ``folder``."""
    backbone = tiny_backbone(folder / "tiny", num_layers=1, max_length=32)
    return ["--backbone", str(backbone), "--log.no-tensorboard", "--log.every", "1"]


def reproduce(shared: list[str], table: str, output: Path, *more: str) -> list[str]:
    return ["reproduce", "--table", table, "--output", str(output), *shared, *more]


def report_of(output: Path, table: str) -> dict:
    return json.loads((output / f"table-{table}.json").read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
