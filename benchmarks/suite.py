"""The stages of a run of the benchmarks, the most valuable first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from benchmarks.cases import memory, stages
from benchmarks.cases.registry import BENCHMARKS
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.machine import measure
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Row, Stage
from benchmarks.harness.runner import name_of, record_cases
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case
from benchmarks.harness.text import duration

Tell = Callable[[str], object]
FIGURES = {"stages": stages.stages, "memory": memory.memory}
SHARES = {
    "machine": 1,
    "round": 40,
    "sweep": 19,
    "memory": 5,
    "stages": 3,
    "evaluate": 5,
    "ops": 13,
    "compiled": 14,
}  # of the time of a run; what a stage leaves goes to those after it
STAGES = tuple(SHARES)


def share_of(name: str, stages: Sequence[str]) -> float:
    """Of the time that is left before ``name``, the first of these stages, what it may take."""
    return SHARES[name] / sum(SHARES[stage] for stage in stages)


def run_stage(
    stage: Stage,
    name: str,
    settings: Settings,
    tell: Tell,
    only: str = "",
    until: Deadline | None = None,
    progress: Progress | None = None,
) -> None:
    """Fills a stage with the cases that have ``only`` in their name, but for those that are done.

    What fails is left out, as is what there is no time for; the stage says so. ``tell`` hears of
    every case, when the stage has it.
    """
    start, until, progress = time.perf_counter(), until or Deadline(), progress or Progress()
    if name == "machine" or name in FIGURES:
        run_figures(stage, name, settings, until, progress)
    for benchmark, cases in turns_of(name, settings, only):
        key = name_of(benchmark, cases)
        if key not in progress.done:
            run_cases(stage, benchmark, cases, tell, until, progress)
            progress.end(key)
    stage.seconds += time.perf_counter() - start
    tell(f"{name}: {stage.seconds:.0f} s")


def cases_of(name: str, settings: Settings) -> list[tuple[Benchmark, Case]]:
    """Of a stage, each with its benchmark; of the ops those first that the report's plots show."""
    benchmarks = [kind(settings) for kind in BENCHMARKS.get(name, ())]
    pairs = [(benchmark, case) for benchmark in benchmarks for case in benchmark.cases()]
    return sorted(pairs, key=lambda pair: name == "ops" and not is_main(pair[1]))


def is_main(case: Case) -> bool:
    """Whether it is about MiniLM's joint round, or about no model."""
    return case.model != "bert-base" and case.batch not in ("task", "128", "512")


def turns_of(
    name: str, settings: Settings, only: str = ""
) -> Iterator[tuple[Benchmark, list[Case]]]:
    """The cases of a stage that have ``only`` in their name, those that take turns together."""
    pairs = [(b, case) for b, case in cases_of(name, settings) if only in f"{b.name} {case}"]
    for benchmark, group in groupby(pairs, key=lambda pair: pair[0]):
        cases = [case for _, case in group]
        yield from (
            [(benchmark, cases)]
            if benchmark.is_interleaved
            else ((benchmark, [case]) for case in cases)
        )


def run_cases(
    stage: Stage,
    benchmark: Benchmark,
    cases: Sequence[Case],
    tell: Tell,
    until: Deadline,
    progress: Progress,
) -> None:
    """Those that fail, or that there is no time for, are left out, and ``tell`` hears it."""
    key, before = name_of(benchmark, cases), len(stage.failures)
    rows: dict[Case, dict[str, Row]] = {}
    if key in progress.broken:
        stage.note_failure(key, progress.broken[key])
    elif not until.left:
        for case in cases:
            stage.note_absent(benchmark.name, str(case), NO_TIME)
    else:
        progress.begin(key)
        part = until.part(benchmark.share(cases[0]))
        tell(f"{key}: checks and warms up its variants")
        rows = record_cases(stage, benchmark, cases, until=part, progress=progress, tell=tell)
    for failure in stage.failures[before:]:
        tell(f"LEFT OUT {failure['what']}: {failure['error']}")
    for case in cases:
        times = ", ".join(f"{n} {duration(row.seconds)}" for n, row in rows.get(case, {}).items())
        tell(f"{benchmark.name} {case}: {times or NO_TIME}")


def run_figures(
    stage: Stage, name: str, settings: Settings, until: Deadline, progress: Progress
) -> None:
    """Figures that are no comparison; without the machine's, which nothing catches, nothing else
    says much."""
    if name in progress.done:
        return
    if name in progress.broken:
        stage.note_failure(name, progress.broken[name])
        return
    progress.begin(name)
    if name == "machine":
        stage.details[name] = asdict(measure(settings.device))
    else:
        note_figures(stage, name, settings, until)
    progress.end(name)


def note_figures(stage: Stage, name: str, settings: Settings, until: Deadline) -> None:
    details = stage.details[name] = {}
    try:
        for what, figures in FIGURES[name](settings, until):
            if figures:
                details[what] = figures
            else:
                stage.note_absent(name, what, NO_TIME)
    except Exception as error:  # the run goes on, and ends with a failure
        stage.note_failure(name, error)
