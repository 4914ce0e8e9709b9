"""Says what got slower from one run of the benchmarks to another, beyond noise.

    python -m benchmarks.report.regressions A.json B.json [--threshold 0.15]

Machines drift: the median change of what is not ours (peers, copies), in the same case and over all
cases, is taken off first, whichever is larger. Something of ours is slower if its median then grew
by more than the threshold and its lower quartile lies above A's upper one. Ends with 1 if
something is, or if a benchmark of B stopped; with 2 if the two have nothing in common.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.results import Results, Row, is_ours

THRESHOLD = 0.15


@dataclass(frozen=True)
class Change:
    """One variant of one case in two runs.

    Attributes:
        ratio: of medians, b over a. drift: that of the machine.
    """

    a: Row
    b: Row
    drift: float

    @property
    def ratio(self) -> float:
        return self.b.seconds / self.a.seconds

    @property
    def corrected(self) -> float:
        return self.ratio / self.drift

    def is_slower(self, threshold: float) -> bool:
        return self.corrected > 1 + threshold and self.b.low / self.drift > self.a.high

    def is_faster(self, threshold: float) -> bool:
        return self.corrected < 1 / (1 + threshold) and self.b.high / self.drift < self.a.low

    def __str__(self) -> str:
        benchmark, case, variant = self.a.key
        return (
            f"{benchmark} {case}, {variant}: {self.corrected:.2f}x"
            f" ({1e3 * self.a.seconds:.4g} ms, then {1e3 * self.b.seconds:.4g} ms;"
            f" the machine {self.drift:.2f}x)"
        )


@dataclass
class Changes:
    """Two runs side by side.

    Attributes:
        drift: median change over all that is not ours. ours: the changes of what is.
        missing: what is ours in A and not in B, or with other tokens there. failures: of B.
    """

    drift: float
    ours: list[Change]
    missing: list[tuple[str, str, str]]
    failures: list[dict] = field(default_factory=list)

    def slower(self, threshold: float = THRESHOLD) -> list[Change]:
        """The worst first."""
        changes = [change for change in self.ours if change.is_slower(threshold)]
        return sorted(changes, key=lambda change: -change.corrected)

    def faster(self, threshold: float = THRESHOLD) -> list[Change]:
        changes = [change for change in self.ours if change.is_faster(threshold)]
        return sorted(changes, key=lambda change: change.corrected)


def changes_between(a: Results, b: Results) -> Changes:
    """What is in both runs, with as many tokens."""
    before, after = ({row.key: row for row in run.rows} for run in (a, b))
    alike = [key for key, row in before.items() if key in after and after[key].tokens == row.tokens]
    ratios = {key: after[key].seconds / before[key].seconds for key in alike}
    of_case: dict[tuple[str, str], list[float]] = {}
    for (benchmark, case, variant), ratio in ratios.items():
        if not is_ours(variant):
            of_case.setdefault((benchmark, case), []).append(ratio)
    every = [ratio for ratios_of_case in of_case.values() for ratio in ratios_of_case]
    drift = statistics.median(every) if every else 1.0
    ours = [
        Change(before[key], after[key], max(drift, _median(of_case.get(key[:2]), drift)))
        for key in ratios
        if is_ours(key[2])
    ]
    missing = [key for key in before if key not in ratios and is_ours(key[2])]
    return Changes(drift, ours, missing, b.failures)


def _median(values: list[float] | None, otherwise: float) -> float:
    return statistics.median(values) if values else otherwise


def lines_of(changes: Changes, a: Results, b: Results, threshold: float) -> list[str]:
    """Lines for a reader."""
    lines = [
        f"{name}: {a.environment.get(name)}, then {b.environment.get(name)}: ratios say little"
        for name in ("hardware", "threads", "device")
        if a.environment.get(name) != b.environment.get(name)
    ]
    lines.append(
        f"{len(changes.ours)} times of ours compared; the machine took {changes.drift:.2f}x the"
        " time for what is not ours"
    )
    lines += [f"SLOWER  {change}" for change in changes.slower(threshold)]
    lines += [f"faster  {change}" for change in changes.faster(threshold)]
    lines += [f"STOPPED {failure['what']}: {failure['error']}" for failure in changes.failures]
    if changes.missing:
        lines.append(
            f"{len(changes.missing)} times of ours are in the first run alone, or of other sizes"
        )
    if not changes.slower(threshold):
        lines.append(f"nothing is slower by more than {threshold:.0%} beyond noise")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, help="results.json, or its folder")
    parser.add_argument("b", type=Path)
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="0.15 is 15%%")
    args = parser.parse_args(arguments)
    try:
        a, b = Results.load(args.a), Results.load(args.b)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    changes = changes_between(a, b)
    if not changes.ours and not changes.failures:
        parser.error("the two runs have no case in common")
    print("\n".join(lines_of(changes, a, b, args.threshold)))
    return 1 if changes.slower(args.threshold) or changes.failures else 0


if __name__ == "__main__":
    sys.exit(main())
