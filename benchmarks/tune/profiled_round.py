"""A captured round of a short real run for NVIDIA's profilers, as ``make gpu-profile`` calls them.

    python -m benchmarks.tune.profiled_round [--rounds 20]

It trains as ``short_run`` does, then repeats a round until all its optimiser steps are replays, and
tells the profiler to record one more of these: nothing else is recorded.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.harness.short_run import ShortRun
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.group import TaskBatch

MAX_REPEATS = 8


def is_replayed(step: CapturedStep, batches: list[TaskBatch], index: int) -> bool:
    """Runs a round; whether every optimiser step of it was a replay."""
    taken, replayed = step.num_steps_taken, step.num_replays
    step.round(batches, index)
    return step.num_replays - replayed == step.num_steps_taken - taken


def repeat_until_captured(step: CapturedStep, batches: list[TaskBatch], index: int) -> None:
    """Runs the round again until all of it is replays.

    Raises:
        SystemExit: it never is.
    """
    if not any(is_replayed(step, batches, index) for _ in range(MAX_REPEATS)):
        raise SystemExit(
            f"profiled_round: the round was repeated {MAX_REPEATS} times and still runs launch by"
            " launch; why is in the lines above"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="of training before")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("profiled_round: only an NVIDIA GPU has captured rounds; there is none")
    run = ShortRun(args.rounds)
    run.train()
    batches, index = next(run.rounds()), run.num_rounds - 1
    repeat_until_captured(run.step, batches, index)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run.step.round(batches, index)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    print(*run.step.summary(), sep="\n")


if __name__ == "__main__":
    main()
