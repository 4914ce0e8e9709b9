"""Folders of runs that were never trained: the files that a report reads, with chosen numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.config_io import save_recipe
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig

TASKS = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
TERMS = ("loss", "smart", "bregman", "total", "perturbation", "gain")
METRICS = {"sst": "accuracy", "para": "accuracy", "sts": "pearson"}
SCORES = {
    "sst": {"accuracy": 0.5125},
    "para": {"accuracy": 0.7375},
    "sts": {"pearson": 0.8125},
    "overall": 0.6875,
}
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "processor": "a made-up processor",
    "threads": 2,
    "gpu": None,
    "finished": "2026-01-02T03:04:05+00:00",
}
PROFILE = {
    "rounds": 40,
    "tokens": 500.0,
    "seconds": {"clean": 0.01, "backward": 0.03},
    "floor_seconds": {"clean": 0.005, "backward": 0.01},
    "memory_bytes": {"peak": 512 << 20},
}


def made_up_run(
    folder: Path,
    *,
    seed: int = 0,
    tasks: dict[str, TaskConfig] | None = None,
    with_rows: bool = True,
    is_finished: bool = True,
    weight: float = 1.0,
    **metrics: object,
) -> Path:
    """Writes a run's folder and returns it.

    Args:
        with_rows: also the rows of dev of every task.
        weight: of SMART.
        metrics: values of ``metrics.json`` that replace the made-up ones.
    """
    folder.mkdir(parents=True)
    config = RunConfig(seed=seed, tasks=tasks or TASKS, smart=SmartConfig(weight=weight))
    save_recipe(replace(config, recipe="made-up"), folder / "config.yaml")
    write_lines(folder / "metrics.jsonl", log_lines(seed, has_adversary=weight > 0))
    if is_finished:
        record = {"dev": SCORES, "rounds": 40, "best_round": 30, "rounds_per_second": 2.5}
        record |= {"train_seconds": 16.0, "evaluation_seconds": 4.0, "skipped_updates": 0}
        record |= {"environment": ENVIRONMENT, "profile": PROFILE} | metrics
        (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    if with_rows:
        write_rows(folder, "sst", class_rows(5, seed=seed))
        write_rows(folder, "para", class_rows(2, seed=seed))
        write_rows(folder, "sts", value_rows(seed=seed))
    return folder


def log_lines(seed: int, has_adversary: bool) -> list[dict]:
    """Losses that fall, and an evaluation every ten rounds."""
    random, lines = Random(seed), []
    terms = TERMS if has_adversary else ("loss", "total")
    for done in range(5, 45, 5):
        values = {f"{t}/{term}": random.uniform(1, 2) / done for t in TASKS for term in terms}
        lines.append({"round": done, **values, "num_rounds": 5, "rounds_per_second": 2.0})
        if done % 10 == 0:
            scores = {f"dev/{t}/{METRICS[t]}": 0.4 + done / 100 for t in TASKS}
            lines.append({"round": done, **scores, "dev/overall": 0.4 + done / 100})
    return lines


def class_rows(num_classes: int, num_rows: int = 80, seed: int = 0, names: tuple = ()) -> list:
    """Rows of which a quarter or so are wrong; labels are the same for every seed."""
    random, rows = Random(seed), []
    for number in range(num_rows):
        label = number % num_classes
        prediction = random.randrange(num_classes) if random.random() < 0.4 else label
        rows.append(_row(number, label, prediction, 0.9, 0.1 if label == prediction else 2.3))
        if names:
            rows[-1] |= {"label": names[label], "prediction": names[prediction]}
    return rows


def value_rows(num_rows: int = 80, seed: int = 0) -> list:
    """Rows whose predictions are near their labels."""
    random, rows = Random(seed), []
    for number in range(num_rows):
        label = number % 11 / 2
        prediction = label + random.uniform(-1, 1)
        rows.append(_row(number, label, prediction, None, (label - prediction) ** 2))
    return rows


def _row(number: int, label, prediction, probability: float | None, loss: float) -> dict:
    probabilities = None if probability is None else [probability, 1 - probability]
    return {
        "id": f"row-{number}",
        "texts": [f"Text number {number}."],
        "label": label,
        "prediction": prediction,
        "probabilities": probabilities,
        "loss": loss,
        "num_tokens": 5 + number % 30,
    }


def write_rows(run: Path, task: str, rows: list[dict], split: str = "dev") -> Path:
    (run / "evaluation").mkdir(exist_ok=True)
    return write_lines(run / "evaluation" / f"{split}-{task}.jsonl", rows)


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
