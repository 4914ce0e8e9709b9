"""Figures of a round that are no comparison of times: its stages, and the memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

from benchmarks.rounds import SBRRT, Rounds, build_ours
from benchmarks.settings import Settings
from benchmarks.shapes import MODELS, Case
from sbrrt_fast.training.floor import round_cost
from sbrrt_fast.training.profile import StageClock

MEASURED = ("fast bf16", "reference fp32")


def stage_times(
    settings: Settings, case: Case, update: str, precision: str = "bf16", num_rounds: int = 12
) -> dict:
    """Median seconds of each stage of a round, and what the floor's arithmetic needs.

    Returns:
        ``seconds`` by stage; ``flops`` and ``bytes`` by stage; ``num_tokens`` of a round.
    """
    config = replace(SBRRT, precision=precision, round=replace(SBRRT.round, update=update))
    rounds = Rounds(settings, case)
    step = build_ours(rounds.encoder(), config, settings.device)
    batches = [rounds[i] for i in range(num_rounds)]
    step.clock = StageClock(settings.device)
    for index, found in enumerate(batches):
        step.round(found, index)
        step.clock.end_round()
    num_tokens = sum(b.tokens.num_tokens for found in batches for b in found) / num_rounds
    trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    cost = round_cost(case.config, config, num_tokens, trained)
    return {
        "seconds": step.clock.medians(),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "num_tokens": num_tokens,
        "precision": precision,
    }


def stages(settings: Settings) -> dict:
    """``<model> <batch> <update>`` -> ``stage_times``."""
    num_rounds = 6 if settings.quick else 12
    return {
        f"{model} round {update}": stage_times(
            settings, Case(model, "round", ""), update, num_rounds=num_rounds
        )
        for model in (MODELS if settings.is_gpu else ["minilm"])
        for update in ("per_task", "joint")
    }


def memory(settings: Settings) -> dict:
    """Variant -> what ``benchmarks.memory`` found in a process of its own; a quick run has none."""
    return {} if settings.quick else {name: memory_of(name, settings) for name in MEASURED}


def memory_of(variant: str, settings: Settings) -> dict:
    """``round_bytes``, ``process_bytes`` and what they are of."""
    command = [sys.executable, "-m", "benchmarks.memory", "--json", variant]
    environment = {**os.environ, "DEVICE": settings.device.type}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if told.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told.stderr.strip().splitlines()[-1]}")
    return json.loads(told.stdout.splitlines()[-1])
