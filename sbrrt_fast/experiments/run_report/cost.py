"""Where a run's time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sbrrt_fast.experiments.run_report.charts import line_chart
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.shapes import Chart, Curve
from sbrrt_fast.experiments.run_report.texts import duration, milliseconds
from sbrrt_fast.training.cost.profile import STAGES
from sbrrt_fast.training.logging import SKIPPED

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
    metrics = run.metrics
    seconds = {
        "training": metrics.get("train_seconds"),
        "evaluations": metrics.get("evaluation_seconds"),
    }
    known = {name: value for name, value in seconds.items() if value is not None}
    total = sum(known.values())
    profile = metrics.get("profile") or {}
    stages = _stages(profile)
    speed = metrics.get("rounds_per_second")
    return RunTime(
        run,
        "—" if speed is None else f"{speed:.2f}",
        duration(total) if known else "—",
        [Share(name, duration(s), s / max(total, 1e-9)) for name, s in known.items()],
        stages,
        milliseconds(sum(profile.get("seconds", {}).values())),
        milliseconds(sum(profile.get("floor_seconds", {}).values())),
        _memory(profile),
        int(metrics.get(SKIPPED) or 0),
    )


def speed_chart(runs: Sequence[RunRecord]) -> Chart | None:
    """Rounds per second over the run."""
    curves = [
        Curve(
            run.name,
            run.number,
            [(r["round"], r["rounds_per_second"]) for r in run.log if "rounds_per_second" in r],
        )
        for run in runs
    ]
    return line_chart("rounds per second", [c for c in curves if c.points])


def _stages(profile: dict) -> list[Share]:
    seconds, floors = profile.get("seconds", {}), profile.get("floor_seconds", {})
    seconds = {name: median for name, median in seconds.items() if median > 0}
    total = max(sum(seconds.values()), 1e-12)
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


def _memory(profile: dict) -> str:
    held = profile.get("memory_bytes", {})
    return ", ".join(f"{name} {count / 2**20:,.0f} MiB" for name, count in held.items())
