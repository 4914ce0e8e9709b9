"""Two variants of one run, trained side by side on the same rounds.

Dropout and noise are functions of (seed, round, element), so two implementations of a step must
agree with dropout on, up to rounding. Optimisation magnifies rounding: the yardstick is what the
first variant does to itself when each of its initial weights moves by one ulp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.experiments.differences import (
    Comparison,
    Difference,
    GradientDifference,
    RoundDifference,
    worst_of,
)
from sbrrt_fast.training.finite import check_terms
from sbrrt_fast.training.logging import read_values
from sbrrt_fast.training.round_robin import Cursor
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.trainer import Trainer

VANISHING = 1e-6  # of the largest norm: below it a gradient is taken to be truly zero
_TINY = torch.finfo(torch.float32).tiny


def train_in_lockstep(
    config_a: RunConfig,
    config_b: RunConfig,
    num_rounds: int,
    *,
    yardstick: bool = False,
    labels: tuple[str, str] = ("a", "b"),
    log: Callable[[str], object] = print,
) -> Comparison:
    """Trains the first rounds of two runs in step and measures how far they drift apart.

    Both take the rounds (examples, learning rates) that ``config_a`` has at its full length; no
    run folder is written.

    Args:
        num_rounds: how many rounds to compare.
        yardstick: train a third run as well, see the module's docstring.
        labels: names of the variants for tables.
        log: where lines for the user go.

    Raises:
        ConfigError: the runs are shorter, or have different tasks or weights.
        SbrrtError: anything ``Trainer`` cannot use, or a loss that is not finite.
    """
    a, b = Trainer(config_a, log), Trainer(config_b, log)
    _check_comparable(a, b, num_rounds)
    others = [b]
    if yardstick:
        others.append(Trainer(config_a, log))
        shift_one_ulp(others[1])
    differences = [Difference(_gradient_differences(a, other), []) for other in others]
    losses, cursor = [], a.order.start()
    for _ in range(num_rounds):
        (ours, *theirs), cursor = _round([a, *others], cursor)
        losses.append({"a": ours, "b": theirs[0]})
        for i, other in enumerate(others):
            vanishing = differences[i].vanishing
            differences[i].rounds.append(_round_difference(ours, theirs[i], a, other, vanishing))
    return Comparison(config_a.recipe, config_a.seed, labels, losses, *differences)


@torch.no_grad()
def shift_one_ulp(trainer: Trainer) -> None:
    """Moves each trained weight to the next float above it, and the teacher with it."""
    weights = _weights(trainer)
    for weight in weights.values():
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    if trainer.teacher is not None:
        trainer.teacher.load_state_dict(weights)


def _check_comparable(a: Trainer, b: Trainer, num_rounds: int) -> None:
    sizes = [{n: t.num_examples for n, t in run.train_tasks.items()} for run in (a, b)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the variants have different tasks, {sizes[0]} and {sizes[1]} training examples; "
            "compare runs on the same data"
        )
    shapes = [{n: tuple(w.shape) for n, w in _weights(run).items()} for run in (a, b)]
    if differing := sorted(n for n, _ in shapes[0].items() ^ shapes[1].items()):
        raise ConfigError(
            f"the variants train different weights ({differing[0]}, {len(set(differing))} in all); "
            "compare runs with the same encoder, heads and mode"
        )
    for run in (a, b):
        if run.num_rounds < num_rounds:
            raise ConfigError(
                f"the run has {run.num_rounds} rounds, fewer than the {num_rounds} to compare; "
                "lower --rounds or make the run longer with --epochs"
            )


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}


def _round(runs: list[Trainer], cursor: Cursor) -> tuple[list[dict[str, float]], Cursor]:
    """Trains all runs on the first one's round; their loss terms, and the cursor after it."""
    batches, after = runs[0].order.next_round(cursor)
    losses = []
    for run in runs:
        terms = read_values(run.step.round(run.assemble(batches), cursor.round))
        check_terms(terms, after.round)
        losses.append({name: value for name, value in terms.items() if "/" in name})
    return losses, after


def _gradient_differences(a: Trainer, b: Trainer) -> dict[str, GradientDifference]:
    """By task, of the first round's batches at the initial weights."""
    batches, _ = a.order.next_round(a.order.start())
    pairs = zip(a.assemble(batches), b.assemble(batches), strict=True)
    return {
        ours.name: _gradient_difference(_gradients(a, ours), _gradients(b, theirs))
        for ours, theirs in pairs
    }


def _gradients(trainer: Trainer, batch: TaskBatch) -> dict[str, Tensor]:
    rng = torch.tensor([trainer.config.seed, 0], device=trainer.device)
    return trainer.step.gradients(batch, rng)


def _gradient_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> GradientDifference:
    assert a.keys() == b.keys(), f"gradients of {sorted(a.keys() ^ b.keys())} on one side only"
    norms = {name: max(_norm(a[name]), _norm(b[name])) for name in a}
    largest = max(max(norms.values()), _TINY)
    vanishing = {n: norm / largest for n, norm in norms.items() if norm < VANISHING * largest}
    relative = {n: _distance(a[n], b[n]) for n in a if n not in vanishing}
    return GradientDifference(relative, vanishing)


def _round_difference(
    losses_a: Mapping[str, float],
    losses_b: Mapping[str, float],
    a: Trainer,
    b: Trainer,
    vanishing: set[str],
) -> RoundDifference:
    assert losses_a.keys() == losses_b.keys(), "the variants have different loss terms"
    losses = {
        name: abs(x - losses_b[name]) / max(abs(x), abs(losses_b[name]), _TINY)
        for name, x in losses_a.items()
    }
    weights_a, weights_b = _weights(a), _weights(b)
    size = math.hypot(*(_norm(w) for w in weights_a.values()))
    distance = math.hypot(*(_norm(w - weights_b[n]) for n, w in weights_a.items()))
    tensors = {n: _distance(w, weights_b[n]) for n, w in weights_a.items()}
    apart = max((tensors.pop(n) for n in vanishing), default=0.0)
    return RoundDifference(losses, distance / max(size, _TINY), *worst_of(tensors), apart)


def _norm(x: Tensor) -> float:
    return x.detach().double().norm().item()


def _distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||a||, 0 where both are 0."""
    return _norm(a.detach().double() - b.detach().double()) / max(_norm(a), _TINY)
