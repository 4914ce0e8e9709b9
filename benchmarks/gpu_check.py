"""Everything worth knowing from a GPU machine in nine minutes: build, tests, benchmarks, training.

    python -m benchmarks.gpu_check OUT [--dry-run] [--seconds 525]

It needs torch, triton, nvcc and no network. Stages (``gpu_check_stages.py``) run one after the
other, each in a process of its own with its own time limit; one that fails or takes too long does
not stop the next. ``OUT/gpu_check.json`` is written after every stage, what a stage prints goes to
``OUT/logs``, and a table of all comes last. ``--dry-run`` takes the same way on a machine without a
GPU: what can run on a CPU runs there, with more patience, and the rest is listed with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import ROOT, commit
from benchmarks.results import write_json

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
SECONDS = 525.0  # of all stages together
PATIENCE = 3.0  # a dry run may take so many times as long
LEAST = 5.0  # a stage is not begun with less
RESULT, LOGS, TAIL = "gpu_check.json", "logs", 15


@dataclass(frozen=True)
class Stage:
    """A command with a time limit.

    Attributes:
        limit: seconds. needs: what must be there, see ``gpu_check_stages.MISSING``.
        environment: variables added to those of this process.
    """

    name: str
    command: Sequence[str]
    limit: float
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ``passed``, ``failed``, ``timed out`` or ``skipped``, and why."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    tail: list[str] = field(default_factory=list)


def run_stage(stage: Stage, limit: float, log: Path) -> Outcome:
    """Runs the command; at the limit it is killed with everything it has started."""
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            list(stage.command),
            cwd=ROOT,
            env={**os.environ, **stage.environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    seconds = time.perf_counter() - start
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    if code is None:
        return Outcome(stage.name, TIMED_OUT, f"after {limit:.0f} s", seconds, tail)
    if code:
        return Outcome(stage.name, FAILED, f"exit status {code}", seconds, tail)
    return Outcome(stage.name, PASSED, "", seconds, tail)


def _kill_group(process: subprocess.Popen) -> None:
    """Ends what is left of the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(
    stages: Sequence[Stage],
    output: Path,
    missing: Callable[[str], str | None],
    seconds: float = SECONDS,
    tell: Callable[[str], object] = print,
) -> list[Outcome]:
    """Runs the stages in order within so many seconds, writing the outcomes after each.

    Args:
        missing: the reason why something that a stage needs is not there, or None.
    """
    (output / LOGS).mkdir(parents=True, exist_ok=True)
    outcomes, end = [], time.perf_counter() + seconds
    for stage in stages:
        outcomes.append(_take(stage, output, missing, end - time.perf_counter()))
        record = {"commit": commit(), "stages": [asdict(outcome) for outcome in outcomes]}
        write_json(output / RESULT, record)
        tell(line(outcomes[-1]))
    return outcomes


def _take(stage: Stage, output: Path, missing: Callable[[str], str | None], left: float) -> Outcome:
    reasons = [reason for need in stage.needs if (reason := missing(need))]
    if reasons:
        return Outcome(stage.name, SKIPPED, "; ".join(reasons))
    if left < LEAST:
        return Outcome(stage.name, SKIPPED, "no time is left")
    try:
        return run_stage(stage, min(stage.limit, left), output / LOGS / f"{stage.name}.log")
    except OSError as error:  # the command is not there
        return Outcome(stage.name, FAILED, str(error))


def line(outcome: Outcome) -> str:
    return f"{outcome.name:<12}{outcome.status:<11}{outcome.seconds:>6.1f} s  {outcome.reason}"


def main(arguments: list[str] | None = None) -> int:
    from benchmarks.gpu_check_stages import missing, stages

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, what can run there")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together")
    args = parser.parse_args(arguments)
    output = args.output.resolve()
    seconds = args.seconds * (PATIENCE if args.dry_run else 1.0)
    outcomes = run_all(stages(output, args.dry_run), output, missing(), seconds)
    print("\n" + "\n".join(map(line, outcomes)))
    for outcome in outcomes:
        if outcome.status in (FAILED, TIMED_OUT):
            print(f"\n{outcome.name}, last lines:", *outcome.tail, sep="\n  ")
    report = output / "report.md"
    if report.exists():
        print(f"\n{report.read_text(encoding='utf-8').partition('## Goals')[2].split('##')[0]}")
    return 1 if any(outcome.status in (FAILED, TIMED_OUT) for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
