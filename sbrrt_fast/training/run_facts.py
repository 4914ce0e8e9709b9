"""What ``metrics.json`` says of a finished run besides its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.training.log_summary import run_means
from sbrrt_fast.training.logging import LINES
from sbrrt_fast.training.progress import Progress


def run_facts(config: RunConfig, progress: Progress, num_rounds: int, smart: SmartConfig) -> dict:
    """Rounds, times, settings that tables show, and the means of the loss terms.

    Args:
        num_rounds: that the run was to have; fewer are done where it was stopped early.
        smart: the resolved settings.
    """
    done = progress.cursor.round
    return {
        "rounds": done,
        "rounds_per_second": done / max(progress.seconds, 1e-9),
        "stopped_early": done < num_rounds,
        "backend": config.backend,
        "precision": config.precision,
        "seed": config.seed,
        "recipe": config.recipe,
        "layout": config.layout,
        "best_round": progress.best["round"],
        "average": _average(config, progress),
        "train_seconds": progress.seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "smart": _settings(smart),
        "means": run_means(config.output / LINES),
    }


def train_data(tasks: Mapping[str, TokenizedTask]) -> dict[str, dict[str, int]]:
    """By task, how many training rows there were, and how many of their labels were replaced."""
    return {
        name: {
            "rows": task.num_examples,
            "noisy_labels": task.report.num_noisy if task.report else 0,
        }
        for name, task in tasks.items()
    }


def _average(config: RunConfig, progress: Progress) -> dict | None:
    """Which weights the best model has; None in a run without averages."""
    return None if config.average.weights == "none" else progress.best["average"]


def _settings(smart: SmartConfig) -> dict | None:
    """SMART's resolved settings; infinity as a word, since JSON has none."""
    if smart.weight == 0:
        return None
    return {k: "inf" if v == math.inf else v for k, v in asdict(smart).items()}
