"""Pictures of the results, with 95% intervals over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from matplotlib.figure import Figure

from benchmarks.results_page.results import Results
from sbrrt_fast.experiments.plots import interval_lengths, table_figure
from sbrrt_fast.experiments.record import RunRecord
from sbrrt_fast.experiments.statistics import Spread
from sbrrt_fast.experiments.table_rows import TABLES

_ALL_ROWS = 10_000  # where the axis has them
_FOUR = ("round-robin", "round-robin-smart", "round-robin-teacher", "sbrrt")
Point = tuple[float, Spread]


def figures(results: Results) -> dict[str, Figure]:
    """By file name without ending: one per table with runs, curves, and robustness."""
    found = {f"table-{name}": table_figure(results.report(name)) for name in results.tables}
    curves = {"radius": size_curves, "data": data_curves, "noise": noise_curves}
    for name, points in curves.items():
        if any(len(line) > 1 for line in points(results).values()):
            found[name] = _lines(points(results), *_AXES[name])
    if "radius" in found and results.has("round-robin"):
        _draw_band(found["radius"].axes[0], _overall(results.runs["round-robin"]))
    if results.robustness:
        found["robustness"] = _bars(results)
    return found


_AXES = {
    "radius": ("R_s, mean over the tasks and the run", "log"),
    "data": ("training rows of each task", "log"),
    "noise": ("share of labels that are changed", "linear"),
}


def size_curves(results: Results) -> dict[str, list[Point]]:
    """The overall score by R_s, for rows with another radius and with another lambda."""
    lines: dict[str, list[Point]] = {"another radius": [], "another lambda": []}
    for row in TABLES["radius"].rows:
        runs = results.runs[row.name]
        sizes = [x for run in runs for key, x in run.means.items() if key.endswith("/smart")]
        if not sizes:
            continue
        point = statistics.fmean(sizes), _overall(runs)
        names = [n for n in lines if n.rpartition(" ")[2] in row.name] or list(lines)
        for name in names:  # the recipe itself is in both
            lines[name].append(point)
    return {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}


def data_curves(results: Results) -> dict[str, list[Point]]:
    """The overall score by training rows."""
    rows = "tasks.sts.train_rows"
    return _four(results, "data", lambda run: run.settings.get(rows) or _ALL_ROWS)


def noise_curves(results: Results) -> dict[str, list[Point]]:
    """The overall score by the share of changed labels."""
    return _four(results, "noise", lambda run: run.settings.get("tasks.sst.label_noise") or 0.0)


def _four(
    results: Results, table: str, place: Callable[[RunRecord], float]
) -> dict[str, list[Point]]:
    """A line per variant: with and without SMART, with and without the teacher."""
    lines: dict[str, list[Point]] = {name: [] for name in _FOUR}
    for row in TABLES[table].rows:
        if runs := results.runs[row.name]:
            name = next(n for n in sorted(_FOUR, key=len, reverse=True) if row.name.startswith(n))
            lines[name].append((place(runs[0]), _overall(runs)))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def _overall(runs: list[RunRecord]) -> Spread:
    return Spread(tuple(run.scores["overall"] for run in runs))


def _lines(lines: dict[str, list[Point]], label: str, scale: str) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        known = [(x, spread) for x, spread in points if spread.mean is not None]
        places, spreads = [x for x, _ in known], [spread for _, spread in known]
        means, errors = [s.mean for s in spreads], interval_lengths(spreads)
        axes.errorbar(places, means, yerr=errors, marker="o", capsize=3, label=name)
    axes.set_xscale(scale)
    if any(x == _ALL_ROWS for points in lines.values() for x, _ in points):
        axes.set_xticks([100, 1000, _ALL_ROWS], ["100", "1,000", "all"])
    axes.set(xlabel=label, ylabel="overall dev score, 95% interval")
    axes.legend(fontsize="small")
    return figure


def _draw_band(axes, plain: Spread) -> None:
    """What no R_s gives: round-robin's mean and its interval."""
    axes.axhline(plain.mean, color="gray", linewidth=1, label="round-robin")
    if plain.interval:
        axes.axhspan(*plain.interval, color="gray", alpha=0.2)
    axes.legend(fontsize="small")


def _bars(results: Results) -> Figure:
    """What each change to the texts takes from the overall score, by row."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes, rows = figure.subplots(), list(results.robustness)
    changes = list(dict.fromkeys(c for of_row in results.robustness.values() for c in of_row))
    for i, change in enumerate(changes):
        shift = 0.8 * ((i + 0.5) / len(changes) - 0.5)
        spreads = [(x, results.robustness[row].get(change)) for x, row in enumerate(rows)]
        known = [(x + shift, s) for x, s in spreads if s is not None and s.mean is not None]
        places, of_change = [x for x, _ in known], [s for _, s in known]
        heights, errors = [s.mean for s in of_change], interval_lengths(of_change)
        axes.bar(places, heights, 0.8 / len(changes), yerr=errors, capsize=2, label=change)
    axes.set_xticks(range(len(rows)), rows, rotation=20)
    axes.set(ylabel="change of the overall dev score, 95% interval")
    axes.legend(fontsize="small")
    return figure
