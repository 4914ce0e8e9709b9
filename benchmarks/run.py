"""Runs the benchmarks and writes what ``make bench`` leaves: JSON, a Markdown report, plots.

    python -m benchmarks.run OUT [--stages machine round ...] [--only "minilm round"] [--no-plots]

QUICK=1 takes a fifth of the time; DEVICE is cpu or cuda. Stages share ``--seconds`` out among them:
what there is no time for is listed as absent. ``results.json`` is written after every case, so that
a run that is stopped leaves what it has. Stages that OUT has already from this commit and machine
are kept where others are asked for. The work is done in a process of its own; where something makes
it useless, kills it or hangs, the next one goes on without that.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.deadline import Deadline
from benchmarks.harness.machine import ROOT, Machine, best, environment, measure
from benchmarks.harness.progress import FRESH, FreshProcess, Progress
from benchmarks.harness.results import FILE, Results, Stage
from benchmarks.harness.runner import use_own_stream
from benchmarks.harness.settings import Settings, settings
from benchmarks.report.report import write_report
from benchmarks.suite import STAGES, run_stage, share_of

SECONDS, QUICK_SECONDS = 840.0, 100.0  # with start, report and plots within 15 and 2 minutes
PATIENCE, QUICK_PATIENCE = 300.0, 120.0  # seconds without a step ahead
MOST_PROCESSES = 20
BEGUN = "begun"
CONDITIONS = ("hardware", "commit", "threads", "device", "quick")


def begin(output: Path, settings: Settings, is_whole: bool) -> Results:
    """Empty results, or those in ``output`` where a part is run again under the same conditions."""
    results = Results(environment(settings.device, settings.quick))
    if is_whole or not (output / FILE).exists():
        return results
    old = Results.load(output)
    if any(old.environment.get(name) != results.environment[name] for name in CONDITIONS):
        return results
    return old


def measure_again(results: Results, settings: Settings) -> None:
    """The machine's ceilings, which are the higher ones of before and after."""
    if machine := results.detail("machine"):
        again = best(Machine(**machine), measure(settings.device))
        results.stages["machine"].details["machine"] = asdict(again)


def work(args: argparse.Namespace, progress: Progress) -> int:
    """What is left of a run, in this process; 1 where something failed, FRESH for another one."""
    here, until = settings(), Deadline(args.seconds)
    use_own_stream(here.device)
    if BEGUN in progress.done:
        results = Results.load(args.output)
    else:
        results = begin(args.output, here, is_whole=args.stages == STAGES)
        results.stages |= {name: Stage() for name in args.stages}
        results.save(args.output)
        progress.end(BEGUN)

    def tell(line: str) -> None:
        print(line, flush=True)
        results.save(args.output)

    try:
        for index, name in enumerate(args.stages):
            part = until.part(share_of(name, args.stages[index:]))
            if f"stage {name}" not in progress.done:
                run_stage(results.stages[name], name, here, tell, args.only, part, progress)
                progress.end(f"stage {name}")
    except FreshProcess as reason:
        tell(f"a fresh process goes on: {reason}")
        return FRESH
    return finish(results, here, args)


def finish(results: Results, settings: Settings, args: argparse.Namespace) -> int:
    measure_again(results, settings)
    results.save(args.output)
    print(write_report(results, args.output, not args.no_plots))
    for failure in results.failures:
        print(f"STOPPED {failure['what']}: {failure['error']}", file=sys.stderr)
    return 1 if results.failures else 0


def supervise(command: list[str], seconds: float, patience: float) -> int:
    """Runs ``work`` in one process after the other until one comes to the end.

    Args:
        command: of this module, without ``--seconds`` and ``--progress``.
        patience: seconds after which a process that does not get on is killed.
    """
    until = Deadline(seconds)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "progress.json"
        for _ in range(MOST_PROCESSES):
            options = ["--seconds", repr(until.left), "--progress", str(path)]
            process = subprocess.Popen([*command, *options], cwd=ROOT)
            code, reason = outlive(process, path, patience)
            if code in (0, 1):
                return code
            progress = Progress(path)
            if code != FRESH and not progress.current:
                break
            if code != FRESH:
                print(f"{progress.current}: {reason}", file=sys.stderr, flush=True)
                progress.break_off(reason)
    print("the benchmarks come to no end", file=sys.stderr)
    return 1


def outlive(process: subprocess.Popen, path: Path, patience: float) -> tuple[int, str]:
    """The exit status, and in words; a process that does not get on is killed."""
    start = time.time()
    try:
        while True:
            try:
                code = process.wait(1.0)
                name = signal.Signals(-code).name if code < 0 else f"status {code}"
                return code, f"its process ended with {name}"
            except subprocess.TimeoutExpired:
                last = max(start, path.stat().st_mtime if path.exists() else start)
                if time.time() - last > patience:
                    process.kill()
                    return process.wait(), f"did not end within {patience:.0f} s"
    finally:
        process.kill()


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for results.json, report.md and plots")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--seconds", type=float, help="for all stages together")
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    is_quick = settings().quick
    if args.seconds is None:
        args.seconds = QUICK_SECONDS if is_quick else SECONDS
    args.patience = QUICK_PATIENCE if is_quick else PATIENCE
    args.output = args.output.resolve()
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parsed(arguments)
    if args.progress:
        return work(args, Progress(args.progress))
    command = [sys.executable, "-m", "benchmarks.run", str(args.output), "--only", args.only]
    command += ["--stages", *args.stages, *(["--no-plots"] if args.no_plots else [])]
    return supervise(command, args.seconds, args.patience)


if __name__ == "__main__":
    sys.exit(main())
