"""Means of loss terms over logging intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class IntervalMeans:
    """Means of the finite values of each term, summed on the device until they are read.

    The clock starts with the first round.

    Attributes:
        num_rounds: added. seconds: from the first round to the reading.
        num_values, num_nonfinite: how often a term was added, and how often it was not finite; by
            name, known after the reading.
    """

    def __init__(self):
        self.num_rounds, self.seconds = 0, 0.0
        self.num_values: dict[str, int] = {}
        self.num_nonfinite: dict[str, int] = {}
        # By the names of a round's terms: float64 [2, number of terms], sums and finite counts.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._rounds: dict[tuple[str, ...], int] = {}
        self._begin: float | None = None

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> IntervalMeans:
        """The interval whose ``tensors`` and ``to_meta`` were saved."""
        interval = cls()
        interval.num_rounds, interval.seconds = meta["num_rounds"], meta["seconds"]
        for i, (names, num_rounds) in enumerate(meta["terms"]):
            interval._sums[tuple(names)] = tensors[str(i)]
            interval._rounds[tuple(names)] = num_rounds
        return interval

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, by a number."""
        return {str(i): sums.clone() for i, sums in enumerate(self._sums.values())}

    def to_meta(self) -> dict[str, Any]:
        """All but the sums, as JSON values."""
        seconds = self.seconds + self._running()
        terms = [[list(names), num_rounds] for names, num_rounds in self._rounds.items()]
        return {"num_rounds": self.num_rounds, "seconds": seconds, "terms": terms}

    def start(self) -> None:
        if self._begin is None:
            self._begin = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds one round's detached scalars."""
        self.num_rounds += 1
        names = tuple(terms)
        values = torch.stack(list(terms.values())).double()
        is_finite = torch.isfinite(values)
        sums = torch.stack([values.masked_fill(~is_finite, 0.0), is_finite.double()])
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums
        self._rounds[names] = self._rounds.get(names, 0) + 1

    def read(self) -> dict[str, float]:
        """The means, NaN of terms that were never finite. Stops the clock; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        stacked = torch.cat(list(self._sums.values()), dim=1).tolist() if self._sums else ([], [])
        names = [(name, n) for key, n in self._rounds.items() for name in key]
        for (name, num_rounds), total, count in zip(names, *stacked, strict=True):
            sums[name] = sums.get(name, 0.0) + total
            counts[name] = counts.get(name, 0.0) + count
            self.num_values[name] = self.num_values.get(name, 0) + num_rounds
        self.num_nonfinite = {name: n - int(counts[name]) for name, n in self.num_values.items()}
        self.seconds += self._running()
        self._begin = None
        return {name: sums[name] / n if n else math.nan for name, n in counts.items()}

    def _running(self) -> float:
        """Seconds since the clock was started."""
        return 0.0 if self._begin is None else time.perf_counter() - self._begin
