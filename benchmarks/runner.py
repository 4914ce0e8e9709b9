"""Runs one case of a benchmark: prepares its variants, times them in turn, makes rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.measure import Samples, Stopwatch, interleave
from benchmarks.ops import Benchmark
from benchmarks.results import Row
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


def use_own_stream(device: torch.device) -> None:
    """On a GPU, all work goes to one stream other than the default, which a graph can capture."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
