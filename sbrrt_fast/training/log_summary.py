"""A whole run from its ``metrics.jsonl``: means of its terms, and the updates it left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sbrrt_fast.training.logging import SKIPPED, read_log


def run_means(log: Path) -> dict[str, float]:
    """Each term's mean over the whole run, from the interval means in ``metrics.jsonl``.

    Intervals in which a term could not be computed (null) have no share in its mean; a term that
    never could has none.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for record in read_log(log):
        weight = record.get("num_rounds", 0)
        for name, value in record.items():
            if weight and "/" in name and value is not None:
                sums[name] = sums.get(name, 0.0) + weight * value
                counts[name] = counts.get(name, 0) + weight
    return {name: sums[name] / counts[name] for name in sums}


@dataclass(frozen=True)
class SkippedUpdates:
    """Updates that a run left out.

    Attributes:
        num_skipped, num_updates: of the whole run.
        idle: (round before, last round) of every stretch of logged rounds without any update.
    """

    num_skipped: int
    num_updates: int
    idle: tuple[tuple[int, int], ...]

    def lines(self, num_rounds: int) -> list[str]:
        """Lines for the end of the run; none if no update was left out."""
        if not self.num_skipped:
            return []
        lines = [
            f"{self.num_skipped:,} of {self.num_updates:,} updates were left out, since their "
            "gradients' norm was not finite (on_nonfinite: skip)"
        ]
        for first, last in self.idle:
            tail = "; nothing was trained from there to the end" if last == num_rounds else ""
            lines.append(f"no update of the rounds {first + 1} to {last} was made{tail}")
        return lines


def skipped_updates(log: Path, updates_per_round: int) -> SkippedUpdates:
    """The updates that were left out, from the intervals in ``metrics.jsonl``."""
    skipped, updates, idle = 0, 0, []
    for record in read_log(log):
        if SKIPPED not in record:
            continue
        here, num_rounds = int(record[SKIPPED]), int(record["num_rounds"])
        skipped, updates = skipped + here, updates + num_rounds * updates_per_round
        if here == num_rounds * updates_per_round:
            first, last = record["round"] - num_rounds, record["round"]
            if idle and idle[-1][1] == first:
                first = idle.pop()[0]
            idle.append((first, last))
    return SkippedUpdates(skipped, updates, tuple(idle))
