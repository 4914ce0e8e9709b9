"""Runs the cases of a benchmark: prepares their variants, times them in turn, makes rows."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.deadline import NO_TIME, Deadline
from benchmarks.measure import Samples, Stopwatch, WrongResult, interleave
from benchmarks.ops import Benchmark
from benchmarks.results import Row, Stage
from benchmarks.shapes import Case

PREPARATION = 0.6  # of a case's time, after which no other variant is checked or warmed up


@dataclass(frozen=True)
class Outcome:
    """Samples and rows of a case by variant, and the reasons of those that are absent."""

    samples: dict[str, Samples]
    rows: dict[str, Row]
    absent: dict[str, str]


def run_case(
    benchmark: Benchmark,
    case: Case,
    clock: Callable[[], float] = time.perf_counter,
    until: Deadline | None = None,
) -> Outcome:
    """Checks and times the variants of a case, as many as there is time for.

    Raises:
        WrongResult: one of them computes something else; none of them is timed then.
    """
    samples, absent = _samples(benchmark, case, clock, until or Deadline())
    cost = benchmark.cost(case)
    counted = {"bytes": cost.bytes or None, "flops": cost.flops or None}
    rows = {
        name: Row.of(
            benchmark.name, str(case), name, found, tokens=benchmark.tokens(case), **counted
        )
        for name, found in samples.items()
    }
    return Outcome(samples, rows, absent)


def _samples(
    benchmark: Benchmark, case: Case, clock: Callable[[], float], until: Deadline
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Of the variants that can be timed, and the reasons of those that are absent."""
    ready, budget = until.part(PREPARATION), benchmark.budget(case)
    prepared, watches = benchmark.prepare(case, ready), {}
    for name, calls in prepared.calls.items():
        if ready.left:
            watches[name] = Stopwatch(calls, benchmark.device, budget, benchmark.graph, clock)
    found = interleave(watches, budget, until)
    late = {name: NO_TIME for name in prepared.calls if name not in found}
    return found, prepared.absent | late


def record_case(
    stage: Stage,
    benchmark: Benchmark,
    case: Case,
    clock: Callable[[], float] = time.perf_counter,
    until: Deadline | None = None,
) -> Outcome:
    """``run_case`` whose rows, absent variants and failure go into a stage.

    Raises:
        Exception: what stopped the case, after noting it.
    """
    try:
        outcome = run_case(benchmark, case, clock, until)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        stage.failures.append({"what": f"{benchmark.name} {case}", "error": told})
        if not isinstance(error, WrongResult):
            traceback.print_exc()
        raise
    stage.rows += outcome.rows.values()
    stage.notes += [f"{benchmark.name} {note}" for note in benchmark.notes]
    benchmark.notes.clear()
    for variant, reason in outcome.absent.items():
        where = f"{benchmark.name} {case}" if reason == NO_TIME else benchmark.name
        stage.note_absent(where, variant, reason)
    return outcome


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
