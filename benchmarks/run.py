"""Runs the benchmarks and writes what ``make bench`` leaves: JSON, a Markdown report, plots.

    python -m benchmarks.run OUT [--stages machine round ...] [--only "minilm round"] [--no-plots]

QUICK=1 takes a fifth of the time; DEVICE is cpu or cuda. Stages share ``--seconds`` out among them:
what there is no time for is listed as absent. ``results.json`` is written after every case, so that
a run that is stopped leaves what it has. Stages that OUT has already from this commit and machine
are kept where others are asked for.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.deadline import Deadline
from benchmarks.machine import Machine, best, environment, measure
from benchmarks.report import write_report
from benchmarks.results import FILE, Results, Stage
from benchmarks.runner import use_own_stream
from benchmarks.settings import Settings, settings
from benchmarks.suite import STAGES, run_stage, share_of

SECONDS, QUICK_SECONDS = 560.0, 100.0  # with start, report and plots within 10 and 2 minutes
SAME = ("hardware", "commit", "threads", "device", "quick")


def begin(output: Path, settings: Settings, is_whole: bool) -> Results:
    """Empty results, or those in ``output`` where a part is run again under the same conditions."""
    found = Results(environment(settings.device, settings.quick))
    if is_whole or not (output / FILE).exists():
        return found
    old = Results.load(output)
    if any(old.environment.get(name) != found.environment[name] for name in SAME):
        return found
    return old


def measure_again(results: Results, settings: Settings) -> None:
    """The machine's ceilings, which are the higher ones of before and after."""
    if machine := results.detail("machine"):
        again = best(Machine(**machine), measure(settings.device))
        results.stages["machine"].details["machine"] = asdict(again)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for results.json, report.md and plots")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--seconds", type=float, help="for all stages together")
    args = parser.parse_args()
    chosen = settings()
    until = Deadline(args.seconds or (QUICK_SECONDS if chosen.quick else SECONDS))
    use_own_stream(chosen.device)
    results = begin(args.output, chosen, is_whole=args.stages == STAGES)

    def tell(line: str) -> None:
        print(line, flush=True)
        results.save(args.output)

    for index, name in enumerate(args.stages):
        stage = results.stages[name] = Stage()
        part = until.part(share_of(name, args.stages[index:]))
        run_stage(stage, name, chosen, tell, args.only, part)
    measure_again(results, chosen)
    results.save(args.output)
    print(write_report(results, args.output, not args.no_plots))
    failures = [f for stage in results.stages.values() for f in stage.failures]
    for failure in failures:
        print(f"STOPPED {failure['what']}: {failure['error']}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
