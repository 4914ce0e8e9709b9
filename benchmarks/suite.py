"""The stages of a run of the benchmarks, the most valuable first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from benchmarks import parts
from benchmarks.bench_adamw_ema import AdamwEma
from benchmarks.bench_assemble import Assemble
from benchmarks.bench_attention import Attention
from benchmarks.bench_dropout_mask import DropoutMask
from benchmarks.bench_embed import Embed
from benchmarks.bench_evaluate import Evaluate
from benchmarks.bench_gelu import BiasGelu
from benchmarks.bench_layernorm import LayerNorm
from benchmarks.bench_optimizer import Optimizer
from benchmarks.bench_round import Round
from benchmarks.bench_smart_ascend import SmartAscend
from benchmarks.bench_smart_noise import SmartNoise
from benchmarks.bench_sweep import Sweep
from benchmarks.bench_symmetric_kl import Fisher, SymmetricKl
from benchmarks.machine import measure
from benchmarks.ops import Benchmark
from benchmarks.results import Row, Stage
from benchmarks.runner import record_case
from benchmarks.settings import Settings

Tell = Callable[[str], object]
OPS = (
    Attention, LayerNorm, BiasGelu, Embed, AdamwEma, Optimizer, SymmetricKl, Fisher, SmartNoise,
    SmartAscend, DropoutMask,
)  # fmt: skip
BENCHMARKS = {"round": (Round,), "ops": OPS, "evaluate": (Assemble, Evaluate), "sweep": (Sweep,)}
PARTS = {"stages": parts.stages, "memory": parts.memory}
STAGES = ("machine", "round", "stages", "memory", "evaluate", "ops", "sweep")


def run_stage(stage: Stage, name: str, settings: Settings, tell: Tell, only: str = "") -> None:
    """Fills a stage with the cases that have ``only`` in their name; what fails is left out.

    ``tell`` hears of every case, when the stage has it.
    """
    start = time.perf_counter()
    if name == "machine":
        stage.details["machine"] = asdict(measure(settings.device))
    elif name in PARTS:
        run_part(stage, name, settings)
    for kind in BENCHMARKS.get(name, ()):
        run_benchmark(stage, kind(settings), tell, only)
    stage.seconds = time.perf_counter() - start
    tell(f"{name}: {stage.seconds:.0f} s")


def run_benchmark(stage: Stage, benchmark: Benchmark, tell: Tell, only: str = "") -> None:
    """Its cases; one that fails is told and left out."""
    for case in (case for case in benchmark.cases() if only in f"{benchmark.name} {case}"):
        try:
            outcome = record_case(stage, benchmark, case)
        except Exception:  # noted in the stage
            tell(f"STOPPED {stage.failures[-1]['what']}: {stage.failures[-1]['error']}")
        else:
            tell(f"{benchmark.name} {case}: {_times(outcome.rows)}")


def run_part(stage: Stage, name: str, settings: Settings) -> None:
    """Figures that are no comparison."""
    try:
        stage.details[name] = PARTS[name](settings)
    except Exception as error:  # the run goes on, and ends with a failure
        stage.failures.append({"what": name, "error": f"{type(error).__name__}: {error}"})


def _times(rows: dict[str, Row]) -> str:
    return ", ".join(f"{name} {duration(row.seconds)}" for name, row in rows.items())


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
