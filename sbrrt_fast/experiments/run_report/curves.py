"""Learning curves: dev scores, loss terms, and what the adversary did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.experiments.run_report.charts import line_chart
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.shapes import Chart, Curve


@dataclass(frozen=True)
class ChartGroup:
    """Pictures that belong together."""

    title: str
    charts: list[Chart]


# Terms of metrics.jsonl: name, title, whether the axis is logarithmic (None: where it is needed).
LOSS_TERMS = (
    ("loss", "task loss", False),
    ("smart", "SMART term R_s", None),
    ("bregman", "Bregman term D_Breg", None),
    ("total", "total", False),
)
ADVERSARY_TERMS = (
    ("perturbation", "Size of the perturbation"),
    ("gain", "Gain over a random direction"),
)


def tasks_of(runs: Sequence[RunRecord]) -> list[str]:
    """Every task of any run, in the runs' order."""
    return list(dict.fromkeys(name for run in runs for name in run.config.tasks))


def score_curves(runs: Sequence[RunRecord]) -> ChartGroup:
    """The main dev score of every task, and the overall one, at every evaluation."""
    keys = {}
    for name in tasks_of(runs):
        metric = next(r.config.tasks[name].metric_name for r in runs if name in r.config.tasks)
        keys[f"dev/{name}/{metric}"] = f"{name}: {metric}"
    if len(keys) > 1:
        keys[f"dev/{OVERALL}"] = f"{OVERALL} score"
    return _group("Dev scores", [curve_chart(runs, key, title) for key, title in keys.items()])


def loss_curves(runs: Sequence[RunRecord]) -> list[ChartGroup]:
    """A group per task with a picture per loss term."""
    groups = [
        _group(
            f"Loss terms of {task}",
            [curve_chart(runs, f"{task}/{t}", title, is_log) for t, title, is_log in LOSS_TERMS],
        )
        for task in tasks_of(runs)
    ]
    return [group for group in groups if group.charts]


def adversary_curves(runs: Sequence[RunRecord]) -> list[ChartGroup]:
    """The size of the perturbation and what it gained: a group each, with a picture per task."""
    groups = [
        _group(title, [curve_chart(runs, f"{n}/{term}", n, None) for n in tasks_of(runs)])
        for term, title in ADVERSARY_TERMS
    ]
    return [group for group in groups if group.charts]


def _group(title: str, charts: Sequence[Chart | None]) -> ChartGroup:
    return ChartGroup(title, [chart for chart in charts if chart])


def curve_chart(
    runs: Sequence[RunRecord], key: str, title: str, is_log: bool | None = False
) -> Chart | None:
    """A value of the log over rounds; None where no run has it. ``is_log``: see ``line_chart``."""
    return line_chart(title, [_curve(run, key) for run in runs], is_log=is_log)


def _curve(run: RunRecord, key: str) -> Curve:
    points = [(line["round"], _number(line[key])) for line in run.log if key in line]
    best = run.best_round if key.startswith("dev/") else None
    return Curve(run.name, run.number, points, best)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
