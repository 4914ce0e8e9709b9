"""The time that each stage of a round takes, with what it must do and move."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.deadline import Deadline
from benchmarks.harness.rounds import sbrrt, step_and_rounds
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from sbrrt_fast.training.cost.floor import round_cost
from sbrrt_fast.training.cost.profile import StageClock


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
    config = sbrrt(update, precision)
    step, rounds = step_and_rounds(settings, case, config)
    step.clock, until = StageClock(settings.device), until or Deadline()
    for index in range(num_rounds):
        if index >= 3 and not until.left:
            break
        step.round(rounds[index], index)
        step.clock.end_round()
    num_tokens = rounds.num_tokens
    trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    cost = round_cost(case.config, config, rounds.tokens_by_task, trained)
    return {
        "seconds": step.clock.medians(),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "num_tokens": num_tokens,
        "precision": precision,
    }


def stages(settings: Settings, until: Deadline) -> Iterator[tuple[str, dict | None]]:
    """``<model> <batch> <update>`` and its ``stage_times``, None where no time was left."""
    num_rounds = 6 if settings.quick else 12
    for model in MODELS if settings.is_gpu else ["minilm"]:
        for update in ("per_task", "joint"):
            case, figures = Case(model, "round", ""), None
            if until.left:
                figures = stage_times(settings, case, update, num_rounds=num_rounds, until=until)
            yield f"{model} round {update}", figures
