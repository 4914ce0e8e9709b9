"""Scores over seeds: their spread, and differences between two rows seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN, UNDEFINED = "—", "undefined"
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Spread:
    """A value over seeds, None where it is undefined for one of them.

    ``sd`` is the sample standard deviation; it is None for one seed.
    """

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        return None if None in self.values else statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        is_known = len(self.values) > 1 and None not in self.values
        return statistics.stdev(self.values) if is_known else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean at 95%; None for one seed, or where it is undefined."""
        if self.mean is None or self.sd is None:
            return None
        from scipy.stats import t  # slow to import

        count = len(self.values)
        half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * self.sd / count**0.5
        return self.mean - half, self.mean + half

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}

    def __format__(self, spec: str) -> str:
        if self.mean is None:
            return UNDEFINED
        return f"{self.mean:{spec}} ± {number(self.sd, spec.removeprefix('+'))}"


@dataclass(frozen=True)
class PairedDifference:
    """A row's scores less those of its base, seed by seed.

    Attributes:
        num_pairs: seeds that both rows have.
        mean: of the differences.
        interval: Student's t interval of the mean at 95%, whose pairs are the seeds (arXiv
            1803.09578 says why seeds are compared and not single runs); None for one pair.
        p_value: of the paired t-test; None for one pair, and where all differences are the same.
    """

    num_pairs: int
    mean: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and self.interval[0] * self.interval[1] > 0

    def __format__(self, spec: str) -> str:
        if self.interval is None:
            return f"{self.mean:+{spec}}"
        low, high = self.interval
        return f"{self.mean:+{spec}} [{low:+{spec}}, {high:+{spec}}]"


def paired_difference(
    ours: Mapping[int, float | None], base: Mapping[int, float | None]
) -> PairedDifference | None:
    """``ours - base`` of the seeds that both have; None where there is none, or one is undefined.

    Args:
        ours, base: a score by seed.
    """
    seeds = sorted(ours.keys() & base.keys())
    pairs = [(ours[seed], base[seed]) for seed in seeds]
    if not pairs or any(None in pair for pair in pairs):
        return None
    differences = [a - b for a, b in pairs]
    mean = statistics.fmean(differences)
    if len(pairs) == 1:
        return PairedDifference(1, mean)
    if len(set(differences)) == 1:
        return PairedDifference(len(pairs), mean, (mean, mean))
    from scipy.stats import ttest_1samp  # slow to import

    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return PairedDifference(len(pairs), mean, (float(low), float(high)), float(test.pvalue))


def number(value: float | None, spec: str) -> str:
    """A number, or a dash where there is none."""
    return UNKNOWN if value is None else format(value, spec)
