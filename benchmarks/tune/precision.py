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
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.smart.divergence import divergence_of
from sbrrt_fast.smart.regularizer import SmartRegularizer
from sbrrt_fast.training.step.fast_step import FastStep
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.head_pass import HeadPass
from sbrrt_fast.training.step.sbrrt_step import SbrrtStep

PAPER = replace(SBRRT, smart=SmartConfig(weight=1.0, preset="paper"))


def exact_step(rounds: Rounds, config: RunConfig) -> SbrrtStep:
    """The reference in float64."""
    config = replace(config, precision="fp32", backend="reference")
    model = build_model(rounds.encoder(), config, torch.device("cpu"), 0.1).double()
    return SbrrtStep(*training_parts(model, config), config, RUN_ROUNDS)


@torch.no_grad()
def ascent_gradient(step: FastStep, batch: TaskBatch, rng: Tensor) -> Tensor:
    """Of the written-out passes, float32 [num_tokens, hidden]."""
    group = Group.of([batch]).with_words()
    step.student.weights.refresh()
    stream = step._stream(group.tokens, rng)
    heads = HeadPass(step.model, group.names, group.counts, stream)
    step.student.begin(2 * group.tokens.num_tokens)
    embeddings, *_ = step.student.embed(stream)
    adversary = step._adversary(heads, embeddings)
    adversary.clean_pass(stream.normal(embeddings.shape[-1]))
    return adversary.tangent_gradient()


def exact_gradient(step: SbrrtStep, batch: TaskBatch, rng: Tensor) -> Tensor:
    """The same of the reference, float64."""
    model, tokens = step.model, batch.tokens
    stream = DropoutStream(tokens, rng, model.config.max_position_embeddings, backend="reference")

    def logits_at(x: Tensor) -> Tensor:
        return model.logits(batch.name, x, tokens, stream)

    embeddings = model.embed(tokens, stream)
    l_s = divergence_of(model.tasks[batch.name], "reference")
    smart = SmartRegularizer(logits_at, step.smart, l_s, "reference")
    mask = tokens.is_real if step.smart.perturb_special else tokens.is_real & ~tokens.is_special
    noise = stream.normal(embeddings.shape[-1]) * mask[:, None]
    return smart.tangent_gradient(
        embeddings, logits_at(embeddings), step.smart.sigma * noise.double()
    )


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
            r_s = ours_paper._differentiate([batch], rng)[f"{batch.name}/smart"].item()
            expected = exact_paper.losses(batch, rng)["smart"].item()
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
