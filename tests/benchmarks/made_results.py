"""Results of a run that never was, and what they come to for each goal."""

from __future__ import annotations

from benchmarks.harness.results import Results, Row, Stage
from benchmarks.report.goals import GOALS

MS = 1e-3
MACHINE = {"flops": {"fp32": 1e11, "bf16": 1e12}, "bytes": 1e10, "launch": 2e-6}
STAGES = {
    "minilm round per_task": {
        "seconds": {"clean": 40 * MS, "optimiser": 30 * MS, "data": 1 * MS},
        "flops": {"clean": 2e10},
        "bytes": {"optimiser": 1e8},
        "num_tokens": 700,
        "precision": "bf16",
    }
}


def row(benchmark: str, case: str, variant: str, milliseconds: float, **cost) -> Row:
    seconds = milliseconds * MS
    return Row(benchmark, case, variant, seconds, 0.9 * seconds, 1.1 * seconds, 9, "made", **cost)


def made(fast: float = 100.0, reference: int = 400, device: str = "cpu") -> Results:
    """A run with a row of every kind; a round of ours takes ``fast`` milliseconds."""
    times = {
        "hf fp32 eager": 900, "hf bf16 eager": 500, "hf bf16 sdpa": 450, "reference fp32": 800,
        "hf fp32 eager joint": 840, "hf bf16 eager joint": 380, "hf bf16 sdpa joint": 420,
        "fast bf16": fast, "fast bf16 joint": 80, "plain bf16": 40, "fast fp32": 180,
        "plain bf16 joint": 40, "hf bf16 sdpa plain joint": 120,
    }  # fmt: skip
    rounds = [row("round", "minilm round train", n, t, tokens=700) for n, t in times.items()]
    sweep = [
        row("sweep", f"minilm {batch} train", "fast bf16", t, tokens=tokens)
        for batch, t, tokens in (
            ("round-8", 70, 700), ("round-64", 610, 5600), ("tokens-16", 90, 900),
            ("tokens-512", 270, 1800), ("tokens-64", 100, 900),
        )
    ]  # fmt: skip
    vectors = {"ours fp32 32 at a time": 50, "sentence-transformers fp32 32 at a time": 90}
    encode = [row("encode", "minilm texts vectors", n, t, tokens=900) for n, t in vectors.items()]
    ops = [
        row("attention", "minilm round bf16 forward", n, t, tokens=700, bytes=4e6, flops=5e7)
        for n, t in {"cpu": 1.0, "eager": 8.0, "copy": 0.5}.items()
    ]
    ops.append(row("assemble", "any model round data", "ours", 0.2))
    sizes = {"fast bf16": 190, "fast bf16 joint": 230, "reference fp32": reference}
    memory = {n: {"round_bytes": b << 20, "process_bytes": 1 << 30} for n, b in sizes.items()}
    stages = {
        "machine": Stage(details={"machine": MACHINE}),
        "round": Stage(rounds, details={"stages": STAGES, "memory": memory}),
        "ops": Stage(ops + sweep + encode,
                     [{"benchmark": "attention", "variant": "liger", "reason": "no"}],
                     [{"what": "embed x", "error": "WrongResult: off"}]),
    }  # fmt: skip
    environment = {
        "device": device, "hardware": "A Chip", "cpu": {"capability": "AVX9"}, "threads": 2,
        "versions": {"torch": "2.13"}, "commit": "abc", "date": "2026-01-02T03:04",
        "quick": False, "load": 0.5,
    }  # fmt: skip
    return Results(environment, stages)


def goals(results: Results) -> dict[str, tuple[str, str]]:
    """Goal -> (figure, met, not met or the reason)."""
    return {line[0]: line[2:] for line in (goal.line(results) for goal in GOALS)}
