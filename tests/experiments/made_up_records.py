"""Records of runs that nobody trained, with plain numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from sbrrt_fast.experiments.record import RunRecord

MACHINE = {"processor": "made up", "gpu": None, "threads": 2, "cores": 2, "other_cores": 0.02}
NAMES = {"sst": "accuracy", "para": "accuracy", "sts": "pearson", "cfimdb": "accuracy"}


def made_up_record(
    row: str, seed: int, scores: Mapping[str, float | None], **values: Any
) -> RunRecord:
    """A record with these scores, and ``overall`` as their mean."""
    known = list(scores.values())
    overall = None if None in known else statistics.fmean(known)
    record = {
        "recipe": row,
        "backbone": "minilm",
        "settings": {"tasks": list(scores)},
        "scores": {**scores, "overall": overall},
        "metrics": {task: {NAMES[task]: score} for task, score in scores.items()},
        "means": {"sst/smart": 0.25 * (seed + 1), "sst/gain": 40.0},
        "precision": "fp32",
        "backend": "auto",
        "rounds": 10,
        "best_round": 10,
        "rounds_per_second": 2.0 + seed,
        "train_seconds": 60.0,
        "evaluation_seconds": 30.0,
        "machine": MACHINE,
        "version": "0.1.0",
        "command": f"sbrrt-fast reproduce --table 2 --rows {row}",
    }
    return RunRecord(row=row, seed=seed, **{**record, **values})
