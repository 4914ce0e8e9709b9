"""Calls every op of every implementation that this device has, on a round of 8 examples a task.

    python -m benchmarks.gpu_check.small_calls [--backends cuda] [--without bert-base] ...

It checks results and gradients as the benchmarks do and times nothing: a quick answer to whether
kernels run at all. One backend after the other; ``--seconds`` are shared out among its ops, so that
one which compiles for long leaves the others their time. Where an op leaves the GPU unusable, those
after it are called in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.cases.registry import OPS
from benchmarks.harness.benchmark import BACKENDS, Benchmark, absence
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.measure import is_lost
from benchmarks.harness.results import leave_result, stage_result
from benchmarks.harness.settings import Settings, settings
from benchmarks.harness.shapes import Case
from benchmarks.harness.text import describe

RIGHT, LATE = "right", f"not called: {NO_TIME}"
Outcomes = Iterator[tuple[str, str]]  # ``case backend`` and ``right``, or why not


def call_all(
    benchmark: Benchmark,
    backends: Sequence[str] = BACKENDS,
    without: str | None = None,
    until: Deadline | None = None,
) -> Outcomes:
    """``case backend`` and ``right``, ``absent: ...``, ``not called: ...`` or what went wrong."""
    until = until or Deadline()
    for case in benchmark.cases():
        if without and without in str(case):
            continue
        for backend in (name for name in backends if name in benchmark.variants):
            outcome = call(benchmark, case, backend) if until.left else LATE
            yield f"{benchmark.name} {case} {backend}", outcome


def call(benchmark: Benchmark, case: Case, backend: str) -> str:
    try:
        for function in benchmark.calls(case, backend, 1):
            function()
        if benchmark.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # the others are called all the same
        reason = absence(backend, error)
        return f"WRONG: {describe(error)}" if reason is None else f"absent: {reason}"
    return RIGHT


def call_pairs(
    pairs: Sequence[tuple], settings: Settings, without: str | None, until: Deadline
) -> Outcomes:
    """Of backends and benchmarks, each within its share of the time that is left."""
    for index, (backend, kind) in enumerate(pairs):
        part = until.part(1 / (len(pairs) - index))
        yield from call_all(kind(settings), [backend], without, part)
        yield "", ""  # an op's end


class Record:
    """The outcomes so far; in the stage's folder, where there is one, for the next process too."""

    def __init__(self):
        self.outcomes: dict[str, str] = {}
        path = stage_result()
        if path and path.exists():
            self.outcomes = json.loads(path.read_text(encoding="utf-8"))["calls"]

    def add(self, name: str, outcome: str) -> None:
        self.outcomes[name] = outcome
        print(f"{name}: {outcome}", flush=True)
        leave_result({"calls": self.outcomes})

    @property
    def num_wrong(self) -> int:
        return sum(outcome.startswith("WRONG") for outcome in self.outcomes.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--without", help="leaves out cases with this in their name")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all ops together")
    parser.add_argument("--first", type=int, default=0, help="leaves out so many ops")
    args = parser.parse_args()
    until, record = Deadline(args.seconds), Record()
    pairs = [(backend, kind) for backend in args.backends for kind in OPS]
    num_done, quick = args.first, replace(settings(), quick=True)
    for name, outcome in call_pairs(pairs[args.first :], quick, args.without, until):
        if name:
            record.add(name, outcome)
        else:
            num_done += 1
        if outcome.startswith("WRONG") and is_lost():
            go_on(num_done + 1, until.left, args)
    print(f"{record.num_wrong} wrong")
    return 1 if record.num_wrong else 0


def go_on(first: int, seconds: float, args: argparse.Namespace) -> None:
    """In a fresh process, with the op after the one that broke the GPU."""
    print("the GPU is lost to this process; the ops after this one get another", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check.small_calls"]
    command += ["--backends", *args.backends]
    command += ["--without", args.without] if args.without else []
    command += ["--seconds", str(seconds), "--first", str(first)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
