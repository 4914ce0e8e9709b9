"""Runs the cases of a benchmark: prepares their variants, times them in turn, makes rows."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.harness.benchmark import FLOOR, Benchmark, absence
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.measure import CaptureFailed, Stopwatch, interleave, is_lost
from benchmarks.harness.progress import FreshProcess, Progress
from benchmarks.harness.results import Row, Stage
from benchmarks.harness.shapes import Case
from benchmarks.harness.text import describe

PREPARATION = 0.6  # of a case's time, after which no other variant is checked or warmed up
Clock = Callable[[], float]


@dataclass
class Preparation:
    """The variants of a case on their way to be timed, one after the other.

    Attributes:
        watches: of what is ready. absent: reasons of what cannot be compared here.
        failures: what went wrong.
    """

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
        except FreshProcess:
            raise
        except Exception as error:
            self._leave_out(variant, error)
        self.progress.begin("")

    def _watch(self, variant: str, key: str) -> Stopwatch:
        try:
            return self._try_watch(variant, key)
        except CaptureFailed as error:
            self.progress.uncaptured[key] = str(error)
            self.progress.save()
            if self.progress.path:
                raise FreshProcess(f"{key}: {error}") from error
            return self._try_watch(variant, key)

    def _try_watch(self, variant: str, key: str) -> Stopwatch:
        benchmark, uncaptured = self.benchmark, self.progress.uncaptured
        benchmark.is_captured = key not in uncaptured
        if not benchmark.is_captured:
            benchmark.note(f"{variant}: {uncaptured[key]}; timed launch by launch")
        return benchmark.watch(self.case, variant, benchmark.is_captured, clock=self.clock)

    def _leave_out(self, variant: str, error: Exception) -> None:
        if (reason := absence(variant, error)) is not None:
            self.absent[variant] = reason
        else:
            traceback.print_exc()
            self.failures[variant] = describe(error)
        if is_lost():
            self.progress.break_off(describe(error))
            raise FreshProcess(f"the GPU is lost: {describe(error)}")


def record_case(
    stage: Stage,
    benchmark: Benchmark,
    case: Case,
    clock: Clock = time.perf_counter,
    until: Deadline | None = None,
    progress: Progress | None = None,
) -> dict[str, Row]:
    """Checks and times the variants of a case, as many as there is time for.

    Each is warmed up as soon as it is checked, so that what is ready can be timed however long the
    next one takes. A variant that fails, or computes something else, is left out alone. The stage
    has the rows, and why there are no others; an error that stops the whole case is a failure.

    Returns:
        The rows by variant.

    Raises:
        FreshProcess: one of them has made this process useless.
    """
    prepared = Preparation(benchmark, case, clock, progress or Progress())
    what, rows = f"{benchmark.name} {case}", {}
    try:
        rows = _time(prepared, until or Deadline())
    except FreshProcess:
        raise
    except Exception as error:
        traceback.print_exc()
        stage.note_failure(what, error)
    stage.rows += rows.values()
    for variant, error in prepared.failures.items():
        stage.note_failure(f"{what} {variant}", error)
    for variant, reason in prepared.absent.items():
        stage.note_absent(what if reason == NO_TIME else benchmark.name, variant, reason)
    stage.notes += [f"{benchmark.name} {note}" for note in benchmark.notes]
    benchmark.notes.clear()
    return rows


def _time(prepared: Preparation, until: Deadline) -> dict[str, Row]:
    benchmark, case, ready = prepared.benchmark, prepared.case, until.part(PREPARATION)
    for variant in benchmark.all_variants(case):
        if ready.left or variant == FLOOR:
            prepared.take(variant)
        else:
            prepared.absent[variant] = NO_TIME
    prepared.progress.begin(f"{benchmark.name} {case}")
    samples = interleave(prepared.watches, benchmark.budget(case), until)
    prepared.absent |= {name: NO_TIME for name in prepared.watches if name not in samples}
    counts = benchmark.counts(case)
    return {
        name: Row.of(benchmark.name, str(case), name, taken, **counts)
        for name, taken in samples.items()
    }


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
