"""Learning curves: dev scores, loss terms, and what the adversary did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.experiments.run_report.charts import line_chart
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.shapes import Chart, Curve


@dataclass(frozen=True)
class ChartGroup:
    """Pictures that belong together.

    Attributes:
        note: what they show; one sentence or two.
    """

    title: str
    charts: list[Chart]
    note: str = ""


# Terms of metrics.jsonl: name, title, whether the axis is logarithmic (None: where it is needed).
LOSS_TERMS = (
    ("loss", "task loss", False),
    ("smart", "SMART term R_s", None),
    ("bregman", "Bregman term D_Breg", None),
    ("total", "total", False),
)
ADVERSARY_TERMS = (
    ("perturbation", "size of the perturbation", None),
    ("gain", "gain over a random direction", None),
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
    charts = (_chart(runs, key, title, False) for key, title in keys.items())
    return ChartGroup(
        "Dev scores",
        [chart for chart in charts if chart],
        "The ring marks the model that was kept, the best by the overall score.",
    )


def loss_curves(runs: Sequence[RunRecord]) -> list[ChartGroup]:
    """A group per task with a picture per loss term."""
    return list(_term_groups(runs, LOSS_TERMS))


def adversary_curves(runs: Sequence[RunRecord]) -> list[ChartGroup]:
    """A group per task with the size of the perturbation and what it gained."""
    return list(_term_groups(runs, ADVERSARY_TERMS))


def _term_groups(runs: Sequence[RunRecord], terms: Sequence) -> Iterator[ChartGroup]:
    for task in tasks_of(runs):
        charts = [_chart(runs, f"{task}/{t}", title, is_log) for t, title, is_log in terms]
        if any(charts):
            yield ChartGroup(task, [chart for chart in charts if chart])


def _chart(runs: Sequence[RunRecord], key: str, title: str, is_log: bool | None) -> Chart | None:
    curves = [curve for run in runs if (curve := _curve(run, key)).points]
    return line_chart(title, curves, is_log=is_log)


def _curve(run: RunRecord, key: str) -> Curve:
    points = [(line["round"], _number(line[key])) for line in run.log if key in line]
    best = run.best_round if key.startswith("dev/") else None
    return Curve(run.name, run.number, points, best)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
