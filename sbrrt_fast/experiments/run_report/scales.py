"""From values to places on a picture, and the ticks beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sbrrt_fast.experiments.run_report.texts import decimal

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LOG_RATIO = 30.0  # beyond this a linear axis hides the smaller values


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of [low, high] to [start, stop] of a picture.

    Attributes:
        ticks: the places that are labelled, as values.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The place of a value, rounded to a tenth of a pixel."""
        low, high, x = self.low, self.high, value
        if self.is_log:
            low, high, x = math.log(low), math.log(high), math.log(value)
        return round(self.start + (x - low) / (high - low) * (self.stop - self.start), 1)

    def labels(self) -> list[tuple[float, str]]:
        """Place and text of every tick."""
        are_plain = all(1e-3 <= tick <= 1e4 for tick in self.ticks)
        as_power = self.is_log and not are_plain
        return [(self(tick), tick_text(tick, as_power)) for tick in self.ticks]


def fit_scale(
    values: Iterable[float],
    start: float,
    stop: float,
    *,
    is_log: bool | None = False,
    num_ticks: int = 4,
    pad: float = 0.04,
) -> Scale:
    """A scale that shows every value.

    Args:
        is_log: None chooses a logarithm where positive values differ by a factor above 30.
        pad: room at both ends, as a share of the range.
    """
    data = np.array([v for v in values if math.isfinite(v)], dtype=float)
    if is_log is None:
        positive = data[data > 0]
        is_log = len(positive) > 0.8 * len(data) > 0 and _ratio(positive) > _LOG_RATIO
    if is_log:
        return _log_scale(data[data > 0], start, stop, num_ticks)
    low, high = (float(data.min()), float(data.max())) if len(data) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    room = pad * (high - low)
    low, high = low - room, high + room
    return Scale(low, high, start, stop, False, _linear_ticks(low, high, num_ticks))


def _ratio(positive: np.ndarray) -> float:
    return float(positive.max() / positive.min())


def _log_scale(positive: np.ndarray, start: float, stop: float, num_ticks: int) -> Scale:
    low, high = float(positive.min()) / 1.3, float(positive.max()) * 1.3
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = max(1, math.ceil(len(powers) / num_ticks))
    ticks = tuple(10.0**power for power in powers if power % step == 0)
    return Scale(low, high, start, stop, True, ticks or _linear_ticks(low, high, num_ticks))


def _linear_ticks(low: float, high: float, num_ticks: int) -> tuple[float, ...]:
    from matplotlib.ticker import MaxNLocator  # slow to import

    steps = MaxNLocator(num_ticks, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = tuple(float(f"{tick:.10g}") for tick in steps if low <= tick <= high)
    return ticks or ((low + high) / 2,)  # beyond what the locator resolves


def tick_text(value: float, as_power: bool = False) -> str:
    """A tick's label: short, with a typographic minus."""
    if as_power:
        power = math.floor(math.log10(value) + 1e-9)
        factor = f"{value / 10.0**power:.2g}"
        prefix = "" if factor == "1" else f"{factor}·"
        return f"{prefix}10{str(power).translate(_SUPERSCRIPTS)}"
    if value and abs(value) >= 1e4 and not value % 1000:
        return decimal(value / 1000, "g") + "k"
    return decimal(value, "g")
