"""Everything worth knowing from a GPU machine, in two calls of a few minutes.

    python -m benchmarks.gpu_check OUT [--call 1] [--only build step] [--dry-run] [--seconds 240]

The first call builds, checks the captured step, runs compute-sanitizer and lists a round's kernels;
the second runs the ops' tests, the benchmarks and a training. Without ``--call`` one follows the
other, as far as ten minutes reach. It needs torch, triton, nvcc and no network.

``--dry-run`` takes the same way on a machine without a GPU: a small part of every stage runs on the
CPU, and what cannot is listed with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check import stages
from benchmarks.gpu_check.runner import FAILED, TIMED_OUT, Check, ending

MOST_SECONDS = 580.0  # of all stages together, so that a call ends within ten minutes


def main(arguments: list[str] | None = None) -> int:
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(f"python -m {__package__}", description=summary)
    parser.add_argument("output", type=Path)
    parser.add_argument("--call", type=int, choices=(1, 2), help="one of the two; else both")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, a part of it")
    parser.add_argument("--seconds", type=float, help="for all stages together")
    args = parser.parse_args(arguments)
    output, patience = args.output.resolve(), stages.PATIENCE if args.dry_run else 1.0
    chosen = selected(args, output)
    seconds = min(stages.seconds_of(chosen), (args.seconds or MOST_SECONDS) * patience)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        check = Check(output, Path(work), stages.missing(), lambda line: print(line, flush=True))
        outcomes = check.run(chosen, seconds)
    print("\n".join(ending(outcomes, output)))
    return 1 if any(outcome.status in (FAILED, TIMED_OUT) for outcome in outcomes) else 0


def selected(args: argparse.Namespace, output: Path) -> list[stages.Stage]:
    """The stages of a call, those of ``--only`` alone where it is given."""
    return [
        stage
        for stage in stages.stages(output, args.dry_run)
        if args.call in (None, stage.call) or stage.call is None
        if not args.only or stage.name in args.only
    ]


if __name__ == "__main__":
    sys.exit(main())
