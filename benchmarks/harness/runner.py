"""Runs the cases of a benchmark: prepares their variants, times them in turn, makes rows."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.harness.benchmark import FLOOR, Benchmark, absence
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.measure import CaptureFailed, Samples, Stopwatch, interleave, is_lost
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
    """``record_cases`` of one case; its rows by variant."""
    return record_cases(stage, benchmark, [case], clock, until, progress)[case]


def record_cases(
    stage: Stage,
    benchmark: Benchmark,
    cases: Sequence[Case],
    clock: Clock = time.perf_counter,
    until: Deadline | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[Case, dict[str, Row]]:
    """Checks and times the variants of cases that take turns, as many as there is time for.

    Each is warmed up as soon as it is checked, so that what is ready can be timed however long the
    next one takes. A variant that fails, or computes something else, is left out alone. The stage
    has the rows, and why there are no others; an error that stops the whole case is a failure.

    Returns:
        The rows by case and variant.

    Raises:
        FreshProcess: one of them has made this process useless.
    """
    progress = progress or Progress()
    prepared = [Preparation(benchmark, case, clock, progress) for case in cases]
    rows: dict[Case, dict[str, Row]] = {case: {} for case in cases}
    try:
        _time(prepared, rows, until or Deadline(), tell)
    except FreshProcess:
        raise
    except Exception as error:
        traceback.print_exc()
        stage.note_failure(name_of(benchmark, cases), error)
    for each in prepared:
        _note(stage, each, rows[each.case])
    stage.notes += [f"{benchmark.name} {note}" for note in benchmark.notes]
    benchmark.notes.clear()
    return rows


def name_of(benchmark: Benchmark, cases: Sequence[Case]) -> str:
    """Of cases that take turns: of the only one, or of the first with how many there are."""
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f"{benchmark.name} {cases[0]}{more}"


def _note(stage: Stage, prepared: Preparation, rows: dict[str, Row]) -> None:
    """What came of a case, in the stage."""
    benchmark, what = prepared.benchmark, f"{prepared.benchmark.name} {prepared.case}"
    stage.rows += rows.values()
    for variant, error in prepared.failures.items():
        stage.note_failure(f"{what} {variant}", error)
    for variant, reason in prepared.absent.items():
        stage.note_absent(what if reason == NO_TIME else benchmark.name, variant, reason)


def _time(
    prepared: Sequence[Preparation],
    rows: dict[Case, dict[str, Row]],
    until: Deadline,
    tell: Callable[[str], object],
) -> None:
    """Fills in the rows of the cases."""
    ready, first = until.part(PREPARATION), prepared[0]
    for each, variant in _in_order(prepared):
        if ready.left or variant == FLOOR:
            each.take(variant)
        else:
            each.absent[variant] = NO_TIME
    what = name_of(first.benchmark, [each.case for each in prepared])
    first.progress.begin(what)
    watches = {
        (each.case, variant): each.watches[variant]
        for each, variant in _in_order(prepared)
        if variant in each.watches
    }
    tell(f"{what}: {len(watches)} ready, which take turns for up to {until.left:.0f} s")
    samples = interleave(watches, first.benchmark.budget(first.case), until)
    for each in prepared:
        taken = {variant: x for (case, variant), x in samples.items() if case == each.case}
        rows[each.case].update(_rows(each, taken))


def _in_order(prepared: Sequence[Preparation]) -> list[tuple[Preparation, str]]:
    """Every variant of every case, the most telling first: a variant's cases together."""
    benchmark = prepared[0].benchmark
    pairs = [(each, name) for each in prepared for name in benchmark.all_variants(each.case)]
    order = {name: i for i, name in enumerate([*benchmark.variants, FLOOR])}
    return sorted(pairs, key=lambda pair: order[pair[1]])


def _rows(prepared: Preparation, samples: dict[str, Samples]) -> dict[str, Row]:
    """Of a case's variants that have times, and whose times count."""
    benchmark, case = prepared.benchmark, prepared.case
    refused = {name: reason for name in samples if (reason := benchmark.refusal(name))}
    missing = {name: NO_TIME for name in prepared.watches if name not in samples}
    prepared.absent |= missing | refused
    counts = benchmark.counts(case)
    return {
        name: Row.of(benchmark.name, str(case), name, taken, **counts)
        for name, taken in samples.items()
        if name not in refused
    }


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
