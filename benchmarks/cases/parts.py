"""Figures of a round that are no comparison of times: its stages, and the memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.deadline import Deadline
from benchmarks.harness.rounds import SBRRT, Rounds, build_ours
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from sbrrt_fast.training.cost.floor import round_cost
from sbrrt_fast.training.cost.profile import StageClock

LONGEST = 300.0  # seconds of a process
MEASURED = ("fast bf16", "reference fp32")
Found = Iterator[tuple[str, dict | None]]  # names and figures, None where no time was left


def stage_times(
    settings: Settings,
    case: Case,
    update: str,
    precision: str = "bf16",
    num_rounds: int = 12,
    until: Deadline | None = None,
) -> dict:
    """Median seconds of each stage of a round, and what the floor's arithmetic needs.

    It takes fewer rounds, but at least 3, where time is short. A stage is waited for, so that on a
    GPU nothing runs from a graph.

    Returns:
        ``seconds`` by stage; ``flops`` and ``bytes`` by stage; ``num_tokens`` of a round.
    """
    config = replace(SBRRT, precision=precision, round=replace(SBRRT.round, update=update))
    rounds = Rounds(settings, case)
    step = build_ours(rounds.encoder(), config, settings.device)
    step.clock, until = StageClock(settings.device), until or Deadline()
    for index in range(num_rounds):
        if index >= 3 and not until.left:
            break
        step.round(rounds[index], index)
        step.clock.end_round()
    num_tokens = rounds.num_tokens
    trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    cost = round_cost(case.config, config, num_tokens, trained)
    return {
        "seconds": step.clock.medians(),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "num_tokens": num_tokens,
        "precision": precision,
    }


def stages(settings: Settings, until: Deadline) -> Found:
    """``<model> <batch> <update>`` and its ``stage_times``."""
    num_rounds = 6 if settings.quick else 12
    for model in MODELS if settings.is_gpu else ["minilm"]:
        for update in ("per_task", "joint"):
            case, found = Case(model, "round", ""), None
            if until.left:
                found = stage_times(settings, case, update, num_rounds=num_rounds, until=until)
            yield f"{model} round {update}", found


def memory(settings: Settings, until: Deadline) -> Found:
    """Variant and what ``benchmarks.cases.memory`` found of it; a quick run on a CPU has none."""
    if settings.is_gpu or not settings.quick:
        yield from ((name, memory_of(name, settings, until)) for name in MEASURED)


def memory_of(variant: str, settings: Settings, until: Deadline) -> dict | None:
    """``round_bytes``, ``process_bytes`` and what they are of, found in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cases.memory", "--json", variant]
    environment = {**os.environ, "DEVICE": settings.device.type}
    limit = min(until.left, LONGEST)
    try:
        told = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return None
    if told.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told.stderr.strip().splitlines()[-1]}")
    return json.loads(told.stdout.splitlines()[-1])
