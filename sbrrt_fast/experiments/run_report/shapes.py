"""The shapes of pictures, in pixels: what ``templates/charts.html`` writes as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 20, 38  # of the axes: room for their labels


@dataclass(frozen=True)
class Curve:
    """A run's values over rounds; None where there is no value.

    Attributes:
        label: the run's. color: the run's number.
        best_round: marked where it is a point of the curve.
    """

    label: str
    color: int
    points: Sequence[tuple[float, float | None]]
    best_round: float | None = None

    @property
    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Axis:
    """Ticks as (place, text), and what the axis shows."""

    title: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """What all pictures have.

    Attributes:
        title: a line above the picture.
        description: the same in words, for those who do not see it.
        note: a line below.
        legend: names of the parts of bars.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    note: str = ""
    legend: tuple[str, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Line:
    """A curve as SVG ``points`` per unbroken piece, its single points, and its best one."""

    label: str
    color: int
    pieces: list[str]
    dots: list[tuple[float, float, str]]
    best: tuple[float, float] | None


@dataclass(frozen=True)
class LineChart(Chart):
    kind: str = "lines"
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Bar:
    """A stacked bar: place, width and, from below, (y, height, class) of its parts."""

    x: float
    width: float
    parts: list[tuple[float, float, str]]
    title: str


@dataclass(frozen=True)
class BarChart(Chart):
    kind: str = "bars"
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class ScatterChart(Chart):
    """Dots, or cells as (x, y, opacity), and the line on which both values are the same."""

    kind: str = "scatter"
    dots: list[tuple[float, float]] = field(default_factory=list)
    cells: list[tuple[float, float, float]] = field(default_factory=list)
    cell_size: tuple[float, float] = (0.0, 0.0)
    diagonal: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color: int = 0


@dataclass(frozen=True)
class Whisker:
    """A value with its interval on a row of its own."""

    label: str
    color: int
    y: float
    value: float
    low: float | None
    high: float | None
    title: str


@dataclass(frozen=True)
class WhiskerChart(Chart):
    """Values with intervals; ``zero`` is the place of no difference."""

    kind: str = "whiskers"
    whiskers: list[Whisker] = field(default_factory=list)
    zero: float | None = None
