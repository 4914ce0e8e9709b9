"""Pictures of values: where every line, bar and dot is.

Every picture is as wide as a phone, so that its words are as large there as elsewhere; a page puts
several side by side where there is room. A run's colour is a number, which the style sheet turns
into one for light and for dark paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sbrrt_fast.experiments.run_report.scales import Scale, fit_scale
from sbrrt_fast.experiments.run_report.shapes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Bar,
    BarChart,
    Curve,
    Line,
    LineChart,
    ScatterChart,
    Whisker,
    WhiskerChart,
)
from sbrrt_fast.experiments.run_report.texts import with_interval

MOST_POINTS = 240  # of a line
MOST_DOTS = 1500  # of a scatter; above, squares are shaded by how many fall into them
_CELLS = 40  # along an axis
_ROW = 34  # of a whisker


def line_chart(
    title: str, curves: Sequence[Curve], *, is_log: bool | None = False, note: str = ""
) -> LineChart | None:
    """Curves over rounds on common axes; None where no curve has a value.

    Args:
        is_log: None takes a logarithmic axis where the values need one.
    """
    curves = [thinned(curve) for curve in curves if curve.known]
    if not curves:
        return None
    points = [point for curve in curves for point in curve.known]
    xs = fit_scale([x for x, _ in points], LEFT, WIDTH - RIGHT, pad=0.02)
    ys = fit_scale([y for _, y in points], HEIGHT - BOTTOM, TOP, is_log=is_log)
    return LineChart(
        title,
        " ".join(map(described, curves)),
        Axis("round", xs.labels()),
        Axis("log scale" if ys.is_log else "", ys.labels()),
        note,
        lines=[_line(curve, xs, ys) for curve in curves],
    )


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most ``most`` points: means of as many neighbours as it takes."""
    step = math.ceil(len(curve.points) / most)
    if step <= 1:
        return curve
    groups = [curve.points[i : i + step] for i in range(0, len(curve.points), step)]
    points = []
    for group in groups:
        known = [y for _, y in group if y is not None and math.isfinite(y)]
        points.append((group[-1][0], sum(known) / len(known) if known else None))
    return Curve(curve.label, curve.color, points)


def described(curve: Curve) -> str:
    """A curve in a sentence."""
    (first, begin), (last, end) = curve.known[0], curve.known[-1]
    if first == last:
        return f"{curve.label}: {begin:.4g} at round {first:,g}."
    return f"{curve.label}: from {begin:.4g} at round {first:,g} to {end:.4g} at round {last:,g}."


def _line(curve: Curve, xs: Scale, ys: Scale) -> Line:
    pieces: list[list[tuple[float, float]]] = [[]]
    best = None
    for x, y in curve.points:
        if y is None or not math.isfinite(y) or (ys.is_log and y <= 0):
            pieces.append([])
            continue
        pieces[-1].append((x, y))
        if x == curve.best_round:
            best = (xs(x), ys(y))
    placed = [[(xs(x), ys(y)) for x, y in piece] for piece in pieces]
    is_sparse = len(curve.known) <= 40
    marked = [point for piece in pieces for point in piece if is_sparse or len(piece) == 1]
    return Line(
        curve.label,
        curve.color,
        [" ".join(f"{x:g},{y:g}" for x, y in piece) for piece in placed if len(piece) > 1],
        [(xs(x), ys(y), f"{curve.label}, round {x:,g}: {y:.4g}") for x, y in marked],
        best,
    )


def histogram_chart(
    title: str, values: np.ndarray, is_wrong: np.ndarray | None, x_title: str
) -> BarChart:
    """How many rows have which value; wrong ones apart where they are known.

    Args:
        values: whole numbers [num_rows]. is_wrong: bool [num_rows].
    """
    edges = _whole_edges(values)
    right = np.histogram(values if is_wrong is None else values[~is_wrong], edges)[0]
    wrong = np.zeros_like(right) if is_wrong is None else np.histogram(values[is_wrong], edges)[0]
    xs = fit_scale([edges[0], edges[-1]], LEFT, WIDTH - RIGHT, pad=0.02, num_ticks=6)
    ys = fit_scale([0, *(right + wrong)], HEIGHT - BOTTOM, TOP, pad=0.0)
    counts = [int(count) for count in right + wrong]
    quartiles = np.percentile(values, [25, 50, 75])
    return BarChart(
        title,
        f"{len(values):,} rows of {values.min():g} to {values.max():g} {x_title}, a quarter below "
        f"{quartiles[0]:g}, half below {quartiles[1]:g}, a quarter above {quartiles[2]:g}.",
        Axis(x_title, xs.labels()),
        Axis("rows", ys.labels()),
        legend=() if is_wrong is None else ("right", "wrong"),
        bars=[
            _bar(xs, ys, edges[i], edges[i + 1], (int(right[i]), int(wrong[i])), is_wrong is None)
            for i in range(len(counts))
            if counts[i]
        ],
    )


def _whole_edges(values: np.ndarray) -> np.ndarray:
    """Edges of at most 24 bins of equal, whole width."""
    low, high = int(values.min()), int(values.max()) + 1
    width = max(1, math.ceil((high - low) / 24))
    return np.arange(low, high + width, width)


def _bar(
    xs: Scale, ys: Scale, low: float, high: float, counts: tuple[int, int], is_plain: bool
) -> Bar:
    (right, wrong), zero = counts, ys(0)
    middle, top = ys(right), ys(right + wrong)
    parts = [(middle, round(zero - middle, 1), "plain" if is_plain else "right")]
    parts.append((top, round(middle - top, 1), "wrong"))
    span = f"{low:g}" if high - low == 1 else f"{low:g} to {high - 1:g}"
    title = f"{span}: {right + wrong:,} rows" + ("" if is_plain else f", {wrong:,} wrong")
    width = max(round(xs(high) - xs(low) - 1, 1), 0.6)
    return Bar(xs(low), width, [part for part in parts if part[1] > 0], title)


def scatter_chart(title: str, labels: np.ndarray, predictions: np.ndarray, color: int):
    """Predictions over labels, both float [num_rows] in the label's unit."""
    both = np.concatenate([labels, predictions])
    width = height = WIDTH
    xs = fit_scale(both, LEFT, width - RIGHT, num_ticks=5)
    ys = fit_scale(both, height - BOTTOM, TOP, num_ticks=5)
    is_dense = len(labels) > MOST_DOTS
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    error = float(np.sqrt(np.mean((labels - predictions) ** 2)))
    return ScatterChart(
        title,
        f"{len(labels):,} rows; the root of the mean squared difference of label and prediction "
        f"is {error:.4g}. On the dashed line both are the same.",
        Axis("label", xs.labels()),
        Axis("prediction", ys.labels()),
        "the darker a square, the more rows are in it" if is_dense else "",
        width=width,
        height=height,
        right=width - RIGHT,
        bottom=height - BOTTOM,
        dots=[] if is_dense else [(xs(x), ys(y)) for x, y in pairs],
        cells=_cells(labels, predictions, xs, ys) if is_dense else [],
        cell_size=_cell_size(xs, ys),
        diagonal=(xs(xs.low), ys(ys.low), xs(xs.high), ys(ys.high)),
        color=color,
    )


def _cell_size(xs: Scale, ys: Scale) -> tuple[float, float]:
    return round((xs.stop - xs.start) / _CELLS, 2), round((ys.start - ys.stop) / _CELLS, 2)


def _cells(
    labels: np.ndarray, predictions: np.ndarray, xs: Scale, ys: Scale
) -> list[tuple[float, float, float]]:
    """Squares with rows in them, their opacity by the logarithm of how many."""
    edges = [np.linspace(scale.low, scale.high, _CELLS + 1) for scale in (xs, ys)]
    counts = np.histogram2d(labels, predictions, edges)[0]
    opacity = np.round(0.15 + 0.85 * np.log1p(counts) / np.log1p(counts.max()), 2)
    return [
        (xs(edges[0][i]), ys(edges[1][j + 1]), float(opacity[i, j]))
        for i, j in np.argwhere(counts > 0)
    ]


def whisker_chart(
    title: str,
    values: Sequence[tuple[str, int, float, tuple[float, float] | None]],
    *,
    x_title: str,
    has_zero: bool = False,
) -> WhiskerChart | None:
    """Values with intervals, one below another; None without values.

    Args:
        values: label, colour, value and interval.
        has_zero: zero is on the axis, with a line.
    """
    if not values:
        return None
    height = BOTTOM + _ROW * len(values) + 4
    shown = [x for _, _, value, interval in values for x in (value, *(interval or ()))]
    xs = fit_scale([*shown, *([0.0] if has_zero else [])], 12, WIDTH - RIGHT, pad=0.08)
    return WhiskerChart(
        title,
        " ".join(
            f"{label}: {with_interval(value, interval)}." for label, _, value, interval in values
        ),
        Axis(x_title, xs.labels()),
        Axis("", []),
        height=height,
        left=12,
        top=0,
        bottom=height - BOTTOM,
        whiskers=[_whisker(xs, i, *value) for i, value in enumerate(values)],
        zero=xs(0.0) if has_zero else None,
    )


def _whisker(
    xs: Scale, row: int, label: str, color: int, value: float, interval: tuple[float, float] | None
) -> Whisker:
    low, high = (xs(interval[0]), xs(interval[1])) if interval else (None, None)
    title = f"{label}: {with_interval(value, interval)}"
    return Whisker(label, color, _ROW * row + 24, xs(value), low, high, title)
