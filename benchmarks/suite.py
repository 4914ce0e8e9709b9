"""The stages of a run of the benchmarks, the most valuable first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from benchmarks.cases import parts
from benchmarks.cases.adamw_ema import AdamwEma
from benchmarks.cases.assemble import Assemble
from benchmarks.cases.attention import Attention
from benchmarks.cases.dropout_mask import DropoutMask
from benchmarks.cases.embed import Embed
from benchmarks.cases.evaluate import Evaluate
from benchmarks.cases.gelu import BiasGelu
from benchmarks.cases.layernorm import LayerNorm
from benchmarks.cases.optimizer import Optimizer
from benchmarks.cases.round import Round
from benchmarks.cases.smart_ascend import SmartAscend
from benchmarks.cases.smart_noise import SmartNoise
from benchmarks.cases.sweep import Sweep
from benchmarks.cases.symmetric_kl import Fisher, SymmetricKl
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.machine import measure
from benchmarks.harness.progress import FreshProcess, Progress
from benchmarks.harness.results import Row, Stage
from benchmarks.harness.runner import record_case
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case

Tell = Callable[[str], object]
OPS = (
    Attention, LayerNorm, BiasGelu, Embed, AdamwEma, Optimizer, SymmetricKl, Fisher, SmartNoise,
    SmartAscend, DropoutMask,
)  # fmt: skip
BENCHMARKS = {"round": (Round,), "ops": OPS, "evaluate": (Assemble, Evaluate), "sweep": (Sweep,)}
PARTS = {"stages": parts.stages, "memory": parts.memory}
SHARES = {
    "machine": 1,
    "round": 46,
    "stages": 6,
    "memory": 8,
    "evaluate": 4,
    "ops": 17,
    "sweep": 18,
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
    if name == "machine" or name in PARTS:
        run_part(stage, name, settings, until, progress)
    for benchmark, case in cases_of(name, settings):
        key = f"{benchmark.name} {case}"
        if only in key and key not in progress.done:
            run_case(stage, benchmark, case, tell, until, progress)
            progress.end(key)
    stage.seconds += time.perf_counter() - start
    tell(f"{name}: {stage.seconds:.0f} s")


def cases_of(name: str, settings: Settings) -> list[tuple[Benchmark, Case]]:
    """Of a stage, each with its benchmark; of the ops those first that the report's plots show."""
    benchmarks = [kind(settings) for kind in BENCHMARKS.get(name, ())]
    found = [(benchmark, case) for benchmark in benchmarks for case in benchmark.cases()]
    return sorted(found, key=lambda pair: name == "ops" and not is_main(pair[1]))


def is_main(case: Case) -> bool:
    """Whether it is about MiniLM's joint round, or about no model."""
    return case.model != "bert-base" and case.batch not in ("task", "128", "512")


def run_case(
    stage: Stage,
    benchmark: Benchmark,
    case: Case,
    tell: Tell,
    until: Deadline,
    progress: Progress,
) -> None:
    """One that fails, or that there is no time for, is told and left out."""
    key = f"{benchmark.name} {case}"
    if key in progress.broken:
        stage.failures.append({"what": key, "error": progress.broken[key]})
        tell(f"STOPPED {key}: {progress.broken[key]}")
        return
    if not until.left:
        stage.note_absent(benchmark.name, str(case), NO_TIME)
        tell(f"{benchmark.name} {case}: {NO_TIME}")
        return
    progress.begin(key)
    part, before = until.part(benchmark.share(case)), len(stage.failures)
    try:
        outcome = record_case(stage, benchmark, case, until=part, progress=progress)
    except FreshProcess:
        raise
    except Exception:  # noted in the stage
        tell(f"STOPPED {stage.failures[-1]['what']}: {stage.failures[-1]['error']}")
    else:
        for failure in stage.failures[before:]:
            tell(f"LEFT OUT {failure['what']}: {failure['error']}")
        tell(f"{benchmark.name} {case}: {_times(outcome.rows)}")


def run_part(
    stage: Stage, name: str, settings: Settings, until: Deadline, progress: Progress
) -> None:
    """Figures that are no comparison; the machine's, without which nothing else says much, may fail
    the run."""
    if name in progress.done:
        return
    if name in progress.broken:
        stage.failures.append({"what": name, "error": progress.broken[name]})
        return
    progress.begin(name)
    if name == "machine":
        stage.details[name] = asdict(measure(settings.device))
    else:
        run_figures(stage, name, settings, until)
    progress.end(name)


def run_figures(stage: Stage, name: str, settings: Settings, until: Deadline) -> None:
    found = stage.details[name] = {}
    try:
        for what, figures in PARTS[name](settings, until):
            if figures:
                found[what] = figures
            else:
                stage.note_absent(name, what, NO_TIME)
    except Exception as error:  # the run goes on, and ends with a failure
        stage.failures.append({"what": name, "error": f"{type(error).__name__}: {error}"})


def _times(rows: dict[str, Row]) -> str:
    return ", ".join(f"{n} {duration(row.seconds)}" for n, row in rows.items()) or NO_TIME


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
