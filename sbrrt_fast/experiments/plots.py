"""Figures of tables and comparisons, drawn without a display."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sbrrt_fast.experiments.differences import Comparison, Difference
from sbrrt_fast.experiments.finished import FinishedComparison
from sbrrt_fast.experiments.report import Report, RowResult
from sbrrt_fast.experiments.statistics import PairedDifference, Spread
from sbrrt_fast.files import replacing


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def comparison_figure(comparison: Comparison) -> Figure:
    """Differences over rounds on a log scale; an exact zero has no point."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    losses, weights = figure.subplots(1, 2)
    _draw_losses(losses, comparison.difference)
    variants: dict[str, Difference | None] = {
        "b from a": comparison.difference,
        "a + 1 ulp from a": comparison.yardstick,
    }
    for name, difference in variants.items():
        if difference is not None:
            _draw(weights, [r.weights for r in difference.rounds], name)
    losses.set_title("loss terms: |a - b| / max(|a|, |b|)")
    weights.set_title("weights: ||a - b|| / ||a||")
    for axes in (losses, weights):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("round")
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    a, b = comparison.labels
    figure.suptitle(f"{comparison.recipe}: {a} against {b}")
    return figure


def finished_figure(comparison: FinishedComparison) -> Figure:
    """Dev scores and training losses of two runs over rounds, a panel each."""
    panels = [(f"dev {name}", pair) for name, pair in comparison.curves.items()]
    panels += list(comparison.losses.items())
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(4 * num_columns, 3 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, (title, pair) in zip(axes, panels, strict=False):
        for label, points in zip("ab", pair, strict=True):
            panel.plot(*zip(*points, strict=True) if points else ([], []), marker=".", label=label)
        panel.set(title=title, xlabel="round")
        panel.legend(fontsize="small")
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    a, b = comparison.names
    figure.suptitle(f"a = {a}, b = {b}")
    return figure


def _draw_losses(axes, difference: Difference) -> None:
    """A colour per task and a line style per term."""
    names = list(difference.rounds[0].losses)
    tasks, terms = ([name.split("/")[i] for name in names] for i in (0, 1))
    colors = {task: f"C{i}" for i, task in enumerate(dict.fromkeys(tasks))}
    styles = dict(zip(dict.fromkeys(terms), itertools.cycle(("-", "--", ":", "-.")), strict=False))
    for name, task, term in zip(names, tasks, terms, strict=True):
        values = [r.losses[name] for r in difference.rounds]
        _draw(axes, values, name, color=colors[task], linestyle=styles[term])


def _draw(axes, values: list[float | None], name: str, **style) -> None:
    points = [value if value else float("nan") for value in values]
    if not any(values):
        name += " (none in common)" if None in values else " (identical)"
    axes.plot(range(1, len(points) + 1), points, marker=".", label=name, **style)


def table_figure(report: Report) -> Figure:
    """Scores by row with the paper's beside, and differences from the rows' bases."""
    compared = [row for row in report.rows if report.difference(row, report.table.columns[-1])]
    height = max(4.5, 0.35 * len(report.rows))
    figure = Figure(figsize=(12 if compared else 7, height), layout="constrained")
    panels = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
    _draw_scores(panels[0], report)
    if compared:
        _draw_differences(panels[1], report, compared)
    figure.suptitle(report.title)
    return figure


def _draw_scores(axes, report: Report) -> None:
    """A dot is the mean over our seeds with its 95% interval, a cross the paper's score."""
    for i, task in enumerate(report.tasks):
        shift = 0.15 * (i - (len(report.tasks) - 1) / 2)
        spreads = [(y, row.scores.get(task)) for y, row in enumerate(report.rows)]
        scored = [(y + shift, s) for y, s in spreads if s is not None and s.mean is not None]
        means, errors = [s.mean for _, s in scored], interval_lengths([s for _, s in scored])
        places, style = [place for place, _ in scored], {"fmt": "o", "capsize": 3}
        axes.errorbar(means, places, xerr=errors, color=f"C{i}", label=task, **style)
        known = [(r.row.paper.scores.get(task), y) for y, r in enumerate(report.rows)]
        marks = [(score, y + shift) for score, y in known if score is not None]
        if marks:
            label = f"{task}, paper"
            axes.scatter(*zip(*marks, strict=True), marker="x", color=f"C{i}", label=label)
    axes.set_yticks(range(len(report.rows)), [row.row.name for row in report.rows])
    axes.invert_yaxis()
    axes.set(xlabel="dev score, 95% interval over seeds")
    axes.legend(fontsize="small")


def interval_lengths(values: Sequence[Spread | PairedDifference]) -> list[list[float]]:
    """How far each 95% interval reaches below and above its mean; 0 where there is none."""
    bounds = [(value.mean, *(value.interval or (value.mean,) * 2)) for value in values]
    return [[mean - low for mean, low, _ in bounds], [high - mean for mean, _, high in bounds]]


def _draw_differences(axes, report: Report, rows: Sequence[RowResult]) -> None:
    """Rows less their bases by the last score column, with the paired intervals."""
    name = report.table.columns[-1]
    found = [report.difference(row, name) for row in rows]
    places, errors = range(len(rows)), interval_lengths(found)
    axes.errorbar([d.mean for d in found], places, xerr=errors, fmt="o", capsize=3)
    axes.axvline(0.0, color="gray", linewidth=1)
    labels = [f"{row.row.name}\nless {row.row.base}" for row in rows]
    axes.set_yticks(places, labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel=f"difference of {name}, paired 95% interval")
