"""What bf16 leaves of SMART's numbers on real batches: DATA=DIR python -m benchmarks.tune.precision

For the first rounds of a run with MiniLM's weights, per task, against our reference in float64:

- the cosine between the ascent's gradients, of the tangent form, in all coordinates of the batch;
- the relative error of R_s with the ``paper`` preset, whose radius of 1e-5 is far below what bf16
  resolves.

The heads are fresh, and dropout's masks and the noise are the same on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness.rounds import (
    RUN_ROUNDS,
    SBRRT,
    Rounds,
    build_model,
    build_ours,
    data_dir,
    training_parts,
)
from benchmarks.harness.settings import settings
from benchmarks.harness.shapes import Case
from benchmarks.harness.text import markdown_table
from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.model.dropout import NOISE_SITE
from sbrrt_fast.training.cost.profile import NoClock
from sbrrt_fast.training.step.autograd_pass import AutogradModel
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.round_pass import RoundPass, differentiate
from sbrrt_fast.training.step.step import Step

PAPER = replace(SBRRT, smart=SmartConfig(weight=1.0, preset="paper"))


def exact_step(rounds: Rounds, config: RunConfig) -> Step:
    """The reference in float64."""
    config = replace(config, precision="fp32", backend="reference")
    model = build_model(rounds.encoder(), config, torch.device("cpu"), 0.1).double()
    return Step(AutogradModel, *training_parts(model, config), config, RUN_ROUNDS)


def begin(step: Step, batch: TaskBatch, rng: Tensor) -> RoundPass:
    """The batch's pass; the step's copies of weights are renewed."""
    (group,) = step.passes.groups([batch])
    step.passes.refresh()
    return step.passes.begin(group, rng)


def ascent_gradient(step: Step, batch: TaskBatch, rng: Tensor) -> Tensor:
    """Of the written-out passes, float32 [num_tokens, hidden]."""
    this = begin(step, batch, rng)
    with torch.no_grad():
        this.clean(step.ascent)
        return this.first_gradient(step.ascent.config.sigma)


def exact_gradient(step: Step, batch: TaskBatch, rng: Tensor) -> Tensor:
    """The same of the reference, float64."""
    this = begin(step, batch, rng)
    this.clean(step.ascent)
    delta = step.ascent.start(this.noise(NOISE_SITE), this.perturbed.mask)
    with torch.no_grad():
        return step.ascent.gradient(this.around, delta)


def smart_loss(step: Step, batch: TaskBatch, rng: Tensor) -> float:
    """R_s of a batch."""
    this = begin(step, batch, rng)
    terms = differentiate(this, step.ascent, step.teacher is not None, NoClock())
    step.passes.forget()
    return terms[f"{batch.name}/smart"].item()


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def measure(rounds: Rounds, num_rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """(cosines, relative errors of R_s) by task."""
    ours, ours_paper = (
        build_ours(rounds.encoder(), config, rounds.settings.device, log=lambda line: None)
        for config in (SBRRT, PAPER)
    )
    exact, exact_paper = exact_step(rounds, SBRRT), exact_step(rounds, PAPER)
    figures: dict[str, tuple[list[float], list[float]]] = {}
    for index in range(num_rounds):
        rng = torch.tensor([SBRRT.seed, index])
        for batch in rounds[index]:
            cosines, errors = figures.setdefault(batch.name, ([], []))
            gradients = ascent_gradient(ours, batch, rng), exact_gradient(exact, batch, rng)
            cosines.append(cosine(*gradients))
            r_s, expected = (smart_loss(step, batch, rng) for step in (ours_paper, exact_paper))
            errors.append(abs(r_s / expected - 1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    if data_dir() is None:
        sys.exit("set DATA=DIR, the folder of the task files: the figures are of real batches")
    rounds = Rounds(replace(settings(), device=torch.device("cpu")), Case("minilm", "round", ""))
    head = ["task", "cosine, median", "least", "R_s at 1e-5, error, median", "largest"]
    lines = []
    for task, (cosines, errors) in measure(rounds, args.rounds).items():
        of_cosine = f"{statistics.median(cosines):.5f}", f"{min(cosines):.5f}"
        of_error = f"{statistics.median(errors):.1e}", f"{max(errors):.1e}"
        lines.append([task, *of_cosine, *of_error])
    print(*markdown_table(head, lines), sep="\n")


if __name__ == "__main__":
    main()
