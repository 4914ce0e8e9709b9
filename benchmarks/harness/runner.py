"""Runs the cases of a benchmark: prepares their variants, times them in turn, makes rows."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.harness.benchmark import FLOOR, Absent, Benchmark
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.measure import CaptureFailed, Samples, Stopwatch, interleave, is_lost
from benchmarks.harness.progress import FreshProcess, Progress
from benchmarks.harness.results import Row, Stage, is_ours
from benchmarks.harness.shapes import Case
from sbrrt_fast.errors import BackendError

PREPARATION = 0.6  # of a case's time, after which no other variant is checked or warmed up
Clock = Callable[[], float]


@dataclass(frozen=True)
class Outcome:
    """Samples and rows of a case by variant, and why others have none.

    Attributes:
        absent: the reasons of what cannot be compared here. failures: what went wrong.
    """

    samples: dict[str, Samples]
    rows: dict[str, Row]
    absent: dict[str, str]
    failures: dict[str, str]


@dataclass
class Preparation:
    """The variants of a case on their way to be timed, one after the other."""

    benchmark: Benchmark
    case: Case
    clock: Clock
    progress: Progress
    watches: dict[str, Stopwatch] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def take(self, variant: str) -> None:
        """Checks and warms up a variant; one that fails costs itself.

        Raises:
            FreshProcess: it has made this process useless.
        """
        key = f"{self.benchmark.name} {self.case} {variant}"
        if key in self.progress.broken:
            self.failures[variant] = self.progress.broken[key]
            return
        self.progress.begin(key)
        try:
            self.watches[variant] = self._watch(variant, key)
        except (Absent, BackendError) as reason:
            self.absent[variant] = str(reason)
        except FreshProcess:
            raise
        except Exception as error:
            self._note(variant, error)
        self.progress.begin("")

    def _watch(self, variant: str, key: str) -> Stopwatch:
        try:
            return self._made(variant, key)
        except CaptureFailed as error:
            self.progress.uncaptured[key] = str(error)
            self.progress.save()
            if self.progress.path:
                raise FreshProcess(f"{key}: {error}") from error
            return self._made(variant, key)

    def _made(self, variant: str, key: str) -> Stopwatch:
        benchmark, captured = self.benchmark, key not in self.progress.uncaptured
        benchmark.is_captured = captured
        if not captured:
            benchmark.note(f"{variant}: {self.progress.uncaptured[key]}; timed launch by launch")
        calls = benchmark.ready(self.case, variant)
        budget, graph = benchmark.budget(self.case), benchmark.graph and captured
        return Stopwatch(calls, benchmark.device, budget, graph, self.clock)

    def _note(self, variant: str, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}".strip()
        if is_ours(variant) or isinstance(error, AssertionError):
            traceback.print_exc()
            self.failures[variant] = told
        else:
            self.absent[variant] = f"stopped: {told.partition(chr(10))[0]}"
        if is_lost():
            self.progress.break_off(told)
            raise FreshProcess(f"the GPU is lost: {told}")


def run_case(
    benchmark: Benchmark,
    case: Case,
    clock: Clock = time.perf_counter,
    until: Deadline | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Checks and times the variants of a case, as many as there is time for.

    Each is warmed up as soon as it is checked, so that what is ready can be timed however long the
    next one takes. A variant that fails, or computes something else, is left out alone.

    Raises:
        FreshProcess: one of them has made this process useless.
    """
    until = until or Deadline()
    ready = until.part(PREPARATION)
    prepared = Preparation(benchmark, case, clock, progress or Progress())
    for variant in benchmark.all_variants(case):
        if ready.left or variant == FLOOR:
            prepared.take(variant)
        else:
            prepared.absent[variant] = NO_TIME
    prepared.progress.begin(f"{benchmark.name} {case}")
    samples = interleave(prepared.watches, benchmark.budget(case), until)
    late = {name: NO_TIME for name in prepared.watches if name not in samples}
    cost, tokens = benchmark.cost(case), benchmark.tokens(case)
    counted = {"bytes": cost.bytes or None, "flops": cost.flops or None, "tokens": tokens}
    rows = {
        name: Row.of(benchmark.name, str(case), name, found, **counted)
        for name, found in samples.items()
    }
    return Outcome(samples, rows, prepared.absent | late, prepared.failures)


def record_case(
    stage: Stage,
    benchmark: Benchmark,
    case: Case,
    clock: Clock = time.perf_counter,
    until: Deadline | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """``run_case`` whose rows, absent variants and failures go into a stage.

    Raises:
        Exception: what stopped the whole case, after noting it; ``FreshProcess`` is not noted.
    """
    what = f"{benchmark.name} {case}"
    try:
        outcome = run_case(benchmark, case, clock, until, progress)
    except FreshProcess:
        raise
    except Exception as error:
        stage.failures.append({"what": what, "error": f"{type(error).__name__}: {error}"})
        traceback.print_exc()
        raise
    stage.rows += outcome.rows.values()
    stage.failures += [{"what": f"{what} {n}", "error": e} for n, e in outcome.failures.items()]
    stage.notes += [f"{benchmark.name} {note}" for note in benchmark.notes]
    benchmark.notes.clear()
    for variant, reason in outcome.absent.items():
        where = what if reason == NO_TIME else benchmark.name
        stage.note_absent(where, variant, reason)
    return outcome


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
