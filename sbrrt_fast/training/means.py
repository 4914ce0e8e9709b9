"""Means of loss terms over logging intervals and over a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class IntervalMeans:
    """Sums terms on the device until they are read; the clock starts with the first round."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.num_rounds, self.seconds = 0, 0.0
        self._begin: float | None = None

    @classmethod
    def restored(cls, sums: dict[str, Tensor], meta: dict[str, Any]) -> IntervalMeans:
        """The interval whose ``sums`` and ``to_meta`` were saved."""
        interval = cls()
        interval.counts = dict(meta["counts"])
        interval.sums = {name: sums[name] for name in interval.counts}  # in the order of the terms
        interval.num_rounds, interval.seconds = meta["num_rounds"], meta["seconds"]
        return interval

    def to_meta(self) -> dict[str, Any]:
        """All but the sums, as JSON values."""
        seconds = self.seconds + self._running()
        return {"counts": self.counts, "num_rounds": self.num_rounds, "seconds": seconds}

    def start(self) -> None:
        if self._begin is None:
            self._begin = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds one round's detached scalars."""
        self.num_rounds += 1
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means, after which the clock stops; waits for the device once."""
        read = {}
        if self.sums:
            stacked = torch.stack([value.double() for value in self.sums.values()]).tolist()
            read = {n: v / self.counts[n] for n, v in zip(self.sums, stacked, strict=True)}
        self.seconds += self._running()
        self._begin = None
        return read

    def _running(self) -> float:
        """Seconds since the clock was started."""
        return 0.0 if self._begin is None else time.perf_counter() - self._begin


def run_means(path: Path) -> dict[str, float]:
    """Each term's mean over the whole run, from the interval means in ``metrics.jsonl``."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        weight = record.get("num_rounds", 0)
        for name, value in record.items():
            if weight and "/" in name and value is not None:
                sums[name] = sums.get(name, 0.0) + weight * value
                counts[name] = counts.get(name, 0) + weight
    return {name: sums[name] / counts[name] for name in sums}
