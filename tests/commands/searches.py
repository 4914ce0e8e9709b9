"""Searches on small data with a tiny encoder, for several test files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.helpers import small_sample, tiny_backbone

SPACE = """
optimizer.learning_rate: {low: 1e-5, high: 1e-2, log: true}
round.batch_size: {low: 2, high: 4, step: 2}
optimizer.betas: {values: [[0.9, 0.999], [0.9, 0.98]]}
"""
GRID = "smart.radius: {values: [0.01, 0.05]}\nround.batch_size: {values: [2, 3]}\n"
PROGRAM = Path(sys.executable).with_name("sbrrt-fast")


def search_flags(folder: Path) -> list[str]:
    """Flags of a search on small data, which are written into ``folder``."""
    data, backbone = small_sample(folder / "data", 12), tiny_backbone(folder / "tiny", num_layers=1)
    flags = ["--config", "sbrrt", "--data-dir", str(data), "--backbone", str(backbone)]
    return [*flags, "--precision", "fp32", "--log.no-tensorboard"]


def arguments(shared: list[str], folder: Path, *flags: str, space: str = SPACE) -> list[str]:
    """Of a search in ``folder/out``."""
    path = folder / "space.yaml"
    path.write_text(space, encoding="utf-8")
    own = ["--space", str(path), "--output", str(folder / "out"), "--rounds", "4"]
    return ["search", *shared, *own, "--log.evaluate-every", "1", *flags]


def table(folder: Path) -> dict:
    return json.loads((folder / "out" / "trials.json").read_text())
