"""Runs the cases of a benchmark: prepares their variants, times them in turn, makes rows."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.measure import Samples, Stopwatch, WrongResult, interleave
from benchmarks.ops import Benchmark
from benchmarks.results import Row, Stage
from benchmarks.shapes import Case


@dataclass(frozen=True)
class Outcome:
    """Samples and rows of a case by variant, and the reasons of those that are absent."""

    samples: dict[str, Samples]
    rows: dict[str, Row]
    absent: dict[str, str]


def run_case(
    benchmark: Benchmark, case: Case, clock: Callable[[], float] = time.perf_counter
) -> Outcome:
    """Checks and times all variants of a case.

    Raises:
        WrongResult: one of them computes something else; none of them is timed then.
    """
    prepared, budget = benchmark.prepare(case), benchmark.budget(case)
    watches = {
        name: Stopwatch(calls, benchmark.device, budget, benchmark.graph, clock)
        for name, calls in prepared.calls.items()
    }
    samples = interleave(watches, budget) if watches else {}
    cost = benchmark.cost(case)
    counted = {"bytes": cost.bytes or None, "flops": cost.flops or None}
    rows = {
        name: Row.of(
            benchmark.name, str(case), name, found, tokens=benchmark.tokens(case), **counted
        )
        for name, found in samples.items()
    }
    return Outcome(samples, rows, prepared.absent)


def record_case(
    stage: Stage, benchmark: Benchmark, case: Case, clock: Callable[[], float] = time.perf_counter
) -> Outcome:
    """``run_case`` whose rows, absent variants and failure go into a stage.

    Raises:
        Exception: what stopped the case, after noting it.
    """
    try:
        outcome = run_case(benchmark, case, clock)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        stage.failures.append({"what": f"{benchmark.name} {case}", "error": told})
        if not isinstance(error, WrongResult):
            traceback.print_exc()
        raise
    stage.rows += outcome.rows.values()
    for variant, reason in outcome.absent.items():
        stage.note_absent(benchmark.name, variant, reason)
    return outcome


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
