"""Scores as people read them: lines, tables, and what must be said beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.sources import uses_sample
from sbrrt_fast.data.task import OVERALL, TaskConfig
from sbrrt_fast.training.scores.intervals import LEVEL
from sbrrt_fast.training.scores.metrics import UNDEFINED


def flatten_scores(scores: dict) -> dict[str, float]:
    """``{"sst/accuracy": …, …, "overall": …}``, for logs; NaN where a score is undefined."""
    flat = {}
    for name, value in scores.items():
        for metric, score in _metrics(value).items():
            flat[f"{name}/{metric}" if metric else name] = math.nan if score is None else score
    return flat


def format_scores(scores: dict) -> str:
    """One line: ``sst/accuracy .505  para/accuracy .719  …``."""
    texts = [f"{name} {_number(value)}" for name, value in flatten_scores(scores).items()]
    return "  ".join(texts + [f"({line})" for line in undefined_notes(scores)])


def undefined_notes(scores: dict) -> list[str]:
    """A line for each task's score that is undefined, with its reason."""
    tasks = {name: value for name, value in scores.items() if isinstance(value, dict)}
    reasons = {name: value[UNDEFINED] for name, value in tasks.items() if UNDEFINED in value}
    is_counted = scores.get(OVERALL, 0.0) is None
    so = f", so there is no {OVERALL} score" if is_counted else ""
    return [
        f"{name}/{metric} is undefined: {reason}{so}"
        for name, reason in reasons.items()
        for metric, score in _metrics(tasks[name]).items()
        if score is None
    ]


def score_table(
    scores: dict, num_examples: dict[str, int] | None = None, intervals: dict | None = None
) -> str:
    """A row per task and metric and one for the overall score.

    A score that is undefined is a dash, with a line that says why below the table.

    Args:
        num_examples: number of rows by task, for a column of its own.
        intervals: those of ``intervals_of``, likewise.
    """
    heading = f"{LEVEL:.0%} interval" if intervals else ""
    rows = [("task", "metric", "score", heading, "rows" if num_examples else "")]
    for name, value in scores.items():
        count = f"{num_examples[name]:,}" if num_examples and isinstance(value, dict) else ""
        for metric, score in _metrics(value).items():
            between = _range((intervals or {}).get(name, {}).get(metric))
            rows.append((name, metric, _number(score), between, count))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for a, b, *numbers in rows:
        cells = [f"{x:>{w}}" for x, w in zip(numbers, wide[2:], strict=True) if w]
        lines.append("  ".join([f"  {a:<{wide[0]}}  {b:<{wide[1]}}", *cells]).rstrip())
    return "\n".join(lines + undefined_notes(scores))


def _range(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _metrics(value: dict | float | None) -> dict[str, float | None]:
    """A task's metrics; an overall score under no name."""
    if not isinstance(value, dict):
        return {"": value}
    return {metric: score for metric, score in value.items() if metric != UNDEFINED}


def _number(score: float | None) -> str:
    return "—" if score is None or math.isnan(score) else f"{score:.4f}"


def untrained_note(tasks: Mapping[str, TaskConfig]) -> str:
    """Which tasks a run does not train, or an empty string."""
    names = [name for name, task in tasks.items() if not task.train]
    if not names:
        return ""
    heads = "the heads" if len(names) > 1 else "the head"
    return f"{', '.join(names)}: only evaluated, by {heads} that the run started with"


def exposure_note(config: RunConfig) -> str:
    """A caution on a Quora score from MiniLM, or an empty string."""
    is_minilm = "minilm" in config.model.backbone.lower()
    is_sample = uses_sample(config.tasks, config.data_dir)
    if not is_minilm or "para" not in config.tasks or is_sample:
        return ""
    return (
        "all-MiniLM-L6-v2 saw Quora's duplicate pairs in its own training: this para score does "
        "not compare with that of an encoder which did not"
    )
