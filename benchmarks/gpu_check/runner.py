"""Runs stages one after the other, each in a process of its own with its own time limit.

One that fails, hangs or dies of a signal costs only itself. ``OUT/gpu_check.json`` has each stage's
outcome and result as soon as it is there, ``OUT/logs.tar.gz`` what the stages print, kept up to
date while they run. OUT never holds more than ``files`` allows.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu_check.files import archive, excess, result_of
from benchmarks.harness.machine import ROOT, commit
from benchmarks.harness.results import write_json

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
LEAST = 5.0  # a stage is not begun with less
PERIOD = 5.0  # seconds between two looks at a stage that runs
RESULT, LOGS, LOG, TAIL = "gpu_check.json", "logs.tar.gz", "log.txt", 15


@dataclass(frozen=True)
class Stage:
    """A command with a time limit.

    Attributes:
        limit: seconds. needs: what must be there, see ``stages.MISSING``.
        environment: variables added to those of this process. ``STAGE`` is added to them: a folder
            of the stage's own, whose ``result.json`` and ``tests.jsonl`` are its result.
        call: the one to which it belongs; None: to each.
    """

    name: str
    command: Sequence[str]
    limit: float
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    call: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ``passed``, ``failed``, ``timed out`` or ``skipped``, and why.

    Attributes:
        result: of the stage, None where it left nothing. tail: the last lines it printed.
    """

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    result: dict | None = None
    tail: list[str] = field(default_factory=list)


def run_stage(stage: Stage, limit: float, folder: Path, tick: Callable[[], object]) -> Outcome:
    """Runs the command; at the limit it is killed with everything it has started.

    Args:
        folder: of the stage. tick: is called every few seconds, and when it has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, start = folder / LOG, time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            list(stage.command),
            cwd=ROOT,
            env={**os.environ, **stage.environment, "STAGE": str(folder), "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _wait(process, limit, tick)
        finally:
            _kill_group(process)
    status, reason = _ending(code, limit)
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    seconds = time.perf_counter() - start
    return Outcome(stage.name, status, reason, seconds, result_of(folder), tail)


def _wait(process: subprocess.Popen, limit: float, tick: Callable[[], object]) -> int | None:
    """The exit status; None where the limit came first."""
    end = time.perf_counter() + limit
    while (left := end - time.perf_counter()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, PERIOD))
        tick()
    return None


def _ending(code: int | None, limit: float) -> tuple[str, str]:
    if code is None:
        return TIMED_OUT, f"after {limit:.0f} s"
    if code < 0:
        return FAILED, f"died of {signal.Signals(-code).name}"
    return (FAILED, f"exit status {code}") if code else (PASSED, "")


def _kill_group(process: subprocess.Popen) -> None:
    """Ends what is left of the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Check:
    """Runs stages within so many seconds and keeps ``output`` up to date.

    Args:
        output: folder that comes back. work: folder of what the stages leave.
        missing: the reason why something that a stage needs is not there, or None.
        tell: where a line per stage goes.
    """

    def __init__(
        self,
        output: Path,
        work: Path,
        missing: Callable[[str], str | None],
        tell: Callable[[str], object] = print,
    ):
        self.output, self.work, self.missing, self.tell = output, work, missing, tell
        self.outcomes: list[Outcome] = []
        output.mkdir(parents=True, exist_ok=True)

    def run(self, stages: Sequence[Stage], seconds: float) -> list[Outcome]:
        end = time.perf_counter() + seconds
        for stage in stages:
            self.outcomes.append(self._take(stage, end - time.perf_counter()))
            self._save()
            self.tell(line(self.outcomes[-1]))
        return self.outcomes

    def _save(self) -> None:
        self._archive()
        record = {"commit": commit(), "stages": [asdict(outcome) for outcome in self.outcomes]}
        write_json(self.output / RESULT, record)

    def _archive(self) -> None:
        archive(self.work, self.output / LOGS)

    def _take(self, stage: Stage, left: float) -> Outcome:
        reasons = [reason for need in stage.needs if (reason := self.missing(need))]
        if reasons:
            return Outcome(stage.name, SKIPPED, "; ".join(reasons))
        if left < LEAST:
            return Outcome(stage.name, SKIPPED, "no time is left")
        folder = self.work / stage.name.replace(" ", "-")
        try:
            return run_stage(stage, min(stage.limit, left), folder, self._archive)
        except OSError as error:  # the command is not there
            return Outcome(stage.name, FAILED, str(error))


def line(outcome: Outcome) -> str:
    return f"{outcome.name:<12}{outcome.status:<11}{outcome.seconds:>6.1f} s  {outcome.reason}"


def ending(outcomes: Sequence[Outcome], output: Path) -> list[str]:
    """The table of all stages, the last lines of those that failed, and the benchmarks' goals."""
    lines = ["", *map(line, outcomes)]
    for outcome in outcomes:
        if outcome.status in (FAILED, TIMED_OUT):
            lines += [f"\n{outcome.name}, last lines:", *(f"  {x}" for x in outcome.tail)]
    report = output / "report.md"
    if report.exists():
        goals = report.read_text(encoding="utf-8").partition("## Goals")[2]
        lines.append(goals.split("##")[0])
    return lines + [f"too much comes back: {line}" for line in excess(output)]
