"""The page: everything in one file, without a script and without anything from elsewhere."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import sbrrt_fast
from sbrrt_fast.data.sources import uses_sample
from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.experiments.run_report.cost import run_time, speed_chart
from sbrrt_fast.experiments.run_report.curves import (
    adversary_curves,
    loss_curves,
    score_curves,
    tasks_of,
)
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.scores import ScoreSection, metric_text
from sbrrt_fast.experiments.run_report.settings import settings_section
from sbrrt_fast.experiments.run_report.tasks import task_sections
from sbrrt_fast.experiments.run_report.texts import decimal, percent
from sbrrt_fast.messages import printable
from sbrrt_fast.training.scores.table import exposure_note

_PACKAGE = "sbrrt_fast.experiments.run_report"


@dataclass(frozen=True)
class RunSummary:
    """A run in one row."""

    number: int
    name: str
    recipe: str
    backbone: str
    data: str
    seed: int
    rounds: str
    best_round: str
    overall: str


def render_page(runs: Sequence[RunRecord]) -> str:
    """The HTML of a report on one or several runs; it is well-formed XML too.

    Raises:
        DataError: a file of evaluated rows cannot be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids = itertools.count(1)
    environment.globals |= {
        "next_id": lambda: f"picture-{next(ids)}",
        "quote": lambda path: shlex.quote(str(path)),
        "decimal": decimal,
        "metric_text": metric_text,
        "percent": percent,
    }
    return environment.get_template("page.html").render(_values(runs))


def _visible(value: Any) -> Any:
    """Texts without control characters, which no page may have."""
    return value if isinstance(value, Markup | int | float) else printable(value)


def _values(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the template is given."""
    style = files(_PACKAGE).joinpath("templates", "style.css").read_text(encoding="utf-8")
    scores = ScoreSection(runs)
    return {
        "runs": runs,
        "title": _title(runs),
        "version": sbrrt_fast.__version__,
        "style": Markup(style),
        "warnings": _warnings(runs),
        "summaries": [_summary(run) for run in runs],
        "contents": _contents(runs),
        "scores": scores,
        "score_curves": score_curves(runs),
        "loss_curves": loss_curves(runs),
        "adversary_curves": adversary_curves(runs),
        "task_sections": task_sections(runs),
        "times": [run_time(run) for run in runs],
        "speed_chart": speed_chart(runs),
        "settings": settings_section(runs),
    }


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    *others, last = runs[0].config.tasks
    tasks = f"{', '.join(others)} and {last}" if others else last
    return f"{runs[0].config.recipe} on {tasks}"


def _contents(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Id and name of every section."""
    comparison = [("comparison", "Differences")] if len(runs) > 1 else []
    return [
        ("scores", "Dev scores"),
        *comparison,
        ("curves", "Learning curves"),
        ("adversary", "Adversary"),
        *((f"task-{name}", f"Task {name}") for name in tasks_of(runs)),
        ("time", "Time"),
        ("recipe", "Recipe"),
        ("environment", "Environment"),
    ]


def _warnings(runs: Sequence[RunRecord]) -> list[str]:
    """What a reader must know before a number."""
    lines = []
    of_sample = [run for run in runs if uses_sample(run.config.tasks, run.config.data_dir)]
    if samples := [run.name for run in of_sample]:
        lines.append(
            f"{_named(samples, runs)} trained on the built-in sample, which is made up: "
            "these scores are no results."
        )
    if unfinished := [run.name for run in runs if not run.is_finished]:
        lines.append(
            f"{_named(unfinished, runs)} not finished: scores are those of the last evaluation."
        )
    notes = dict.fromkeys(exposure_note(run.config) for run in runs)
    return lines + [f"{note}." for note in notes if note]


def _named(names: Sequence[str], runs: Sequence[RunRecord]) -> str:
    """The subject of a sentence."""
    if len(runs) == 1:
        return "The run was" if runs[0].is_finished else "The run is"
    return f"{', '.join(names)}:"


def _summary(run: RunRecord) -> RunSummary:
    overall, best = run.scores.get(OVERALL), run.best_round
    data = run.config.data_dir
    backbone = run.config.model.backbone
    return RunSummary(
        run.number,
        run.name,
        run.config.recipe,
        Path(backbone).name if Path(backbone).is_absolute() else backbone,
        "built-in sample" if data is None else data.name,
        run.config.seed,
        f"{run.rounds:,}",
        "—" if best is None else f"{best:,}",
        "—" if not isinstance(overall, int | float) else decimal(overall),
    )
