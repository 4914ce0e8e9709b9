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
from pathlib import Path

import torch

from benchmarks.harness.benchmark import BACKENDS, Absent, Benchmark
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.measure import is_lost
from benchmarks.harness.results import write_json
from benchmarks.harness.settings import Settings, settings
from benchmarks.harness.shapes import Case
from benchmarks.suite import OPS
from sbrrt_fast.errors import BackendError

RIGHT, LATE = "right", f"not called: {NO_TIME}"
Told = Iterator[tuple[str, str]]  # ``case backend`` and ``right``, or why not


def call_all(
    benchmark: Benchmark,
    backends: Sequence[str] = BACKENDS,
    without: str | None = None,
    until: Deadline | None = None,
) -> Told:
    """``case backend`` and ``right``, ``absent: ...``, ``not called: ...`` or what went wrong."""
    until = until or Deadline()
    for case in benchmark.cases():
        if without and without in str(case):
            continue
        for backend in (name for name in backends if name in benchmark.variants):
            told = call(benchmark, case, backend) if until.left else LATE
            yield f"{benchmark.name} {case} {backend}", told


def call(benchmark: Benchmark, case: Case, backend: str) -> str:
    try:
        for function in benchmark.calls(case, backend, 1):
            function()
        if benchmark.device.type == "cuda":
            torch.cuda.synchronize()
    except (Absent, BackendError) as reason:
        return f"absent: {reason}"
    except Exception as error:  # the others are called all the same
        return f"WRONG: {type(error).__name__}: {error}"
    return RIGHT


def told_of(pairs: Sequence[tuple], chosen: Settings, without: str | None, until: Deadline) -> Told:
    """Of backends and benchmarks, each within its share of the time that is left."""
    for index, (backend, kind) in enumerate(pairs):
        part = until.part(1 / (len(pairs) - index))
        yield from call_all(kind(chosen), [backend], without, part)
        yield "", ""  # an op's end


class Record:
    """What was told so far; in the stage's folder, where there is one, for the next process too."""

    def __init__(self):
        folder = os.environ.get("STAGE")
        self.path = Path(folder) / "result.json" if folder else None
        self.told: dict[str, str] = {}
        if self.path and self.path.exists():
            self.told = json.loads(self.path.read_text(encoding="utf-8"))["calls"]

    def add(self, name: str, told: str) -> None:
        self.told[name] = told
        print(f"{name}: {told}", flush=True)
        if self.path:
            write_json(self.path, {"calls": self.told})

    @property
    def num_wrong(self) -> int:
        return sum(told.startswith("WRONG") for told in self.told.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--without", help="leaves out cases with this in their name")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all ops together")
    parser.add_argument("--first", type=int, default=0, help="leaves out so many ops")
    args = parser.parse_args()
    until, record = Deadline(args.seconds), Record()
    pairs = [(backend, kind) for backend in args.backends for kind in OPS]
    num_done = args.first
    for name, told in told_of(
        pairs[args.first :], replace(settings(), quick=True), args.without, until
    ):
        if name:
            record.add(name, told)
        else:
            num_done += 1
        if told.startswith("WRONG") and is_lost():
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
