"""Where a run's time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sbrrt_fast.experiments.run_report.curves import curve_chart
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.saved_metrics import SavedMetrics, SavedProfile
from sbrrt_fast.experiments.run_report.shapes import Chart
from sbrrt_fast.experiments.run_report.texts import duration, milliseconds
from sbrrt_fast.training.cost.profile import STAGES

_NAMES = {"report": "logged gain"}


@dataclass(frozen=True)
class Share:
    """A part of a time: text of the time, and share of the whole."""

    name: str
    text: str
    share: float
    floor: str = ""


@dataclass(frozen=True)
class RunTime:
    """A run's time.

    Attributes:
        parts: training and evaluations; empty where they were not recorded.
        stages: of a median round; empty without ``--profile``.
        floor: text of the least a round could take on the machine.
    """

    run: RunRecord
    rounds_per_second: str
    total: str
    parts: list[Share]
    stages: list[Share]
    round_time: str
    floor: str
    memory: str
    num_skipped: int


def run_time(run: RunRecord) -> RunTime:
    """What ``metrics.json`` says of a run's time."""
    metrics = run.metrics or SavedMetrics(dev={})
    profile = metrics.profile or SavedProfile()
    parts = {"training": metrics.train_seconds, "evaluations": metrics.evaluation_seconds}
    seconds = {name: value for name, value in parts.items() if value is not None}
    speed, total = metrics.rounds_per_second, sum(seconds.values())
    return RunTime(
        run,
        "—" if speed is None else f"{speed:.2f}",
        duration(total),
        [Share(name, duration(s), s / max(total, 1e-9)) for name, s in seconds.items()],
        _stages(profile),
        milliseconds(sum(profile.seconds.values())),
        milliseconds(sum(profile.floor_seconds.values())),
        ", ".join(f"{n} {b / 2**20:,.0f} MiB" for n, b in profile.memory_bytes.items()),
        metrics.skipped_updates,
    )


def speed_chart(runs: Sequence[RunRecord]) -> Chart | None:
    """Rounds per second over the run."""
    return curve_chart(runs, "rounds_per_second", "rounds per second")


def _stages(profile: SavedProfile) -> list[Share]:
    """Stages that most rounds have, in the order of a round."""
    seconds = {name: median for name, median in profile.seconds.items() if median > 0}
    total, floors = sum(seconds.values()), profile.floor_seconds
    names = [*(s for s in STAGES if s in seconds), *(s for s in seconds if s not in STAGES)]
    return [
        Share(
            _NAMES.get(name, name),
            milliseconds(seconds[name]),
            seconds[name] / total,
            milliseconds(floors[name]) if name in floors else "",
        )
        for name in names
    ]
