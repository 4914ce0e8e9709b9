"""Two variants of one run, trained side by side on the same rounds.

Dropout and noise are functions of (seed, round, element), so two implementations of a step must
agree with dropout on, up to rounding. Optimisation magnifies rounding: the yardstick is what the
first variant does to itself when each of its initial weights moves by one ulp.

Variants may be unlike: other tasks, rows, encoders, loss terms. What both have is compared then:
loss terms of one name, and tensors of one name and shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

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
from sbrrt_fast.training.finite import check_terms, is_stopping
from sbrrt_fast.training.logging import read_values
from sbrrt_fast.training.round_robin import Batches
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

    Both take the rounds (examples, learning rates) that ``config_a`` has at its full length, unless
    their training rows are unlike: each has its own rounds then. No run folder is written.

    Args:
        num_rounds: how many rounds to compare.
        yardstick: train a third run as well, see the module's docstring.
        labels: names of the variants for tables.
        log: where lines for the user go.

    Raises:
        ConfigError: the runs are shorter, or share no task.
        SbrrtError: anything ``Trainer`` cannot use, or a loss that is not finite.
    """
    a, b = Trainer(config_a, log), Trainer(config_b, log)
    _check_comparable(a, b, num_rounds)
    others = [b]
    if yardstick:
        others.append(Trainer(config_a, log))
        shift_one_ulp(others[1])
    leaders = [a, _leader(a, b), a][: len(others) + 1]  # whose rounds each run takes
    differences = [Difference(_gradient_differences(a, other), []) for other in others]
    losses, cursors = [], {id(run): run.order.start() for run in (a, b)}
    for _ in range(num_rounds):
        drawn = {id(run): run.order.next_round(cursors[id(run)]) for run in (a, b)}
        cursors = {key: after for key, (_, after) in drawn.items()}
        rounds = [drawn[id(leader)][0] for leader in leaders]
        ours, *theirs = _round([a, *others], rounds, cursors[id(a)].round)
        losses.append({"a": ours, "b": theirs[0]})
        for i, other in enumerate(others):
            vanishing = differences[i].vanishing
            differences[i].rounds.append(_round_difference(ours, theirs[i], a, other, vanishing))
    unlike = tuple(_unlike(a, b, losses))
    return Comparison(config_a.recipe, config_a.seed, labels, losses, *_both(differences), unlike)


def _both(differences: list[Difference]) -> tuple[Difference, Difference | None]:
    """That of b and that of the yardstick."""
    return differences[0], differences[1] if len(differences) > 1 else None


@torch.no_grad()
def shift_one_ulp(trainer: Trainer) -> None:
    """Moves each trained weight to the next float above it, and the teacher with it."""
    weights = _weights(trainer)
    for weight in weights.values():
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    if trainer.teacher is not None:
        trainer.teacher.load_state_dict(weights)


def _check_comparable(a: Trainer, b: Trainer, num_rounds: int) -> None:
    if not _sizes(a).keys() & _sizes(b).keys():
        raise ConfigError(
            f"the variants share no task: one has {', '.join(_sizes(a))}, the other "
            f"{', '.join(_sizes(b))}; there is nothing to compare"
        )
    for run in (a, b):
        if run.num_rounds < num_rounds:
            raise ConfigError(
                f"the run has {run.num_rounds} rounds, fewer than the {num_rounds} to compare; "
                "lower --rounds or make the run longer with --epochs"
            )


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}


def _sizes(trainer: Trainer) -> dict[str, int]:
    return {name: task.num_examples for name, task in trainer.train_tasks.items()}


def _leader(a: Trainer, b: Trainer) -> Trainer:
    """Whose rounds b takes."""
    return a if _sizes(a) == _sizes(b) else b


def _shared(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that both have under one name and in one shape."""
    names = [name for name, tensor in a.items() if name in b and b[name].shape == tensor.shape]
    return {name: a[name] for name in names}, {name: b[name] for name in names}


def _unlike(a: Trainer, b: Trainer, losses: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    """A line for everything that one variant has and the other has not."""
    sizes_a, sizes_b = _sizes(a), _sizes(b)
    yield from _one_sided("tasks", sizes_a, sizes_b)
    if sizes := [n for n in sizes_a if n in sizes_b and sizes_a[n] != sizes_b[n]]:
        counts = [f"{n} has {sizes_a[n]:,} and {sizes_b[n]:,}" for n in sizes]
        yield f"training rows: {', '.join(counts)}"
    if sizes_a != sizes_b:
        yield "each variant takes the rounds of its own tasks"
    weights_a, weights_b = _weights(a), _weights(b)
    num_shared = len(_shared(weights_a, weights_b)[0])
    if not num_shared == len(weights_a) == len(weights_b):
        yield (
            f"trained tensors: {len(weights_a)} in a, {len(weights_b)} in b, of which {num_shared} "
            "have one name and shape and are compared"
        )
    terms = [{name for here in losses for name in here[side]} for side in ("a", "b")]
    yield from _one_sided("loss terms", *terms)


def _one_sided(what: str, a: Collection[str], b: Collection[str]) -> Iterator[str]:
    for side, names, others in (("a", a, b), ("b", b, a)):
        if alone := sorted(name for name in names if name not in others):
            yield f"{what} in {side} alone: {', '.join(alone)}"


def _round(runs: list[Trainer], rounds: list[Batches], done: int) -> list[dict[str, float]]:
    """Trains every run on its round, the ``done``-th; their loss terms."""
    losses = []
    for run, batches in zip(runs, rounds, strict=True):
        terms = read_values(run.step.round_of(run.shares.works(batches), done - 1))
        check_terms(terms, done)
        losses.append({n: x for n, x in terms.items() if "/" in n and is_stopping(n)})
    return losses


def _gradient_differences(a: Trainer, b: Trainer) -> dict[str, GradientDifference]:
    """By task of both, of the first round's batches at the initial weights."""
    (ours, _), (theirs, _) = (run.order.next_round(run.order.start()) for run in (a, _leader(a, b)))
    batches = {batch.name: batch for batch in _batches(b, theirs)}
    return {
        batch.name: _gradient_difference(
            *_shared(_gradients(a, batch), _gradients(b, batches[batch.name]))
        )
        for batch in _batches(a, ours)
        if batch.name in batches
    }


def _batches(trainer: Trainer, batches: Batches) -> list[TaskBatch]:
    return [batch for work in trainer.shares.works(batches) for batch in work.batches]


def _gradients(trainer: Trainer, batch: TaskBatch) -> dict[str, Tensor]:
    rng = torch.tensor([trainer.config.seed, 0], device=trainer.device)
    return trainer.step.gradients(batch, rng)


def _gradient_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> GradientDifference:
    norms = {name: max(_norm(a[name]), _norm(b[name])) for name in a}
    largest = max([*norms.values(), _TINY])
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
    losses = {
        name: abs(x - losses_b[name]) / max(abs(x), abs(losses_b[name]), _TINY)
        for name, x in losses_a.items()
        if name in losses_b
    }
    weights_a, weights_b = _shared(_weights(a), _weights(b))
    size = math.hypot(*(_norm(w) for w in weights_a.values()))
    distance = math.hypot(*(_norm(w - weights_b[n]) for n, w in weights_a.items()))
    tensors = {n: _distance(w, weights_b[n]) for n, w in weights_a.items()}
    apart = max((tensors.pop(n) for n in vanishing), default=0.0)
    relative = distance / max(size, _TINY) if weights_a else None
    return RoundDifference(losses, relative, *worst_of(tensors), apart)


def _norm(x: Tensor) -> float:
    return x.detach().double().norm().item()


def _distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||a||, 0 where both are 0."""
    return _norm(a.detach().double() - b.detach().double()) / max(_norm(a), _TINY)
