"""Differences between two variants of a run, round by round: bounds and tables."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sbrrt_fast.messages import columns

GRADIENT_BOUND = 1e-4  # of each tensor's norm, in the first round
LOSS_BOUND = 1e-4  # relative, in the first LOSS_ROUNDS rounds
LOSS_ROUNDS = 10
ULP_FACTOR = 4.0  # of the yardstick: no implementation is closer to the first than that to itself
_TINY = sys.float_info.min


def worst_of(values: Mapping[str, float]) -> tuple[str, float]:
    """The name with the largest value, and the value; ("none", 0.0) of nothing."""
    return max(values.items(), key=lambda item: item[1], default=("none", 0.0))


@dataclass(frozen=True)
class GradientDifference:
    """How far two gradients of one task's loss at the initial weights are apart.

    Attributes:
        relative: ||a - b|| / ||a|| by tensor.
        vanishing: max(||a||, ||b||) over the largest such norm, for tensors where it is below
            1e-6: the true gradient is zero (key biases) and what is there is rounding.
    """

    relative: dict[str, float]
    vanishing: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        return worst_of(self.relative)


@dataclass(frozen=True)
class RoundDifference:
    """How far two variants are apart in one round.

    Attributes:
        losses: |a - b| / max(|a|, |b|) by loss term, such as ``sst/smart``.
        weights: ||a - b|| / ||a|| over all trained weights that both have, after the round; None
            where they have none in common.
        worst_tensor: the tensor with the largest ||a - b|| / ||a||, among those whose gradient
            does not vanish.
        worst: that ratio.
        vanishing: the largest ratio among the others, which Adam moves at random.
    """

    losses: dict[str, float]
    weights: float | None
    worst_tensor: str
    worst: float
    vanishing: float

    @property
    def worst_loss(self) -> tuple[str, float]:
        return worst_of(self.losses)


@dataclass(frozen=True)
class Difference:
    """How far a variant is from the first one: gradients by task, and every round."""

    gradients: dict[str, GradientDifference]
    rounds: list[RoundDifference]

    @property
    def vanishing(self) -> set[str]:
        """Tensors whose gradient is truly zero in every task that reaches them."""
        resolved = {name for g in self.gradients.values() for name in g.relative}
        return {name for g in self.gradients.values() for name in g.vanishing} - resolved


@dataclass(frozen=True)
class Comparison:
    """The result of ``train_in_lockstep``.

    Attributes:
        recipe, seed, labels: of the two runs.
        losses: each round's loss terms of both, ``[{"a": {...}, "b": {...}}, ...]``.
        difference: b from a.
        yardstick: a with initial weights one ulp up, from a; None if it was not asked for.
        unlike: a line for everything that one has and the other has not, and is not compared.
    """

    recipe: str
    seed: int
    labels: tuple[str, str]
    losses: list[dict[str, dict[str, float]]]
    difference: Difference
    yardstick: Difference | None = None
    unlike: tuple[str, ...] = ()

    def weight_factors(self) -> list[float]:
        """Per round, the weights' difference over the yardstick's."""
        assert self.yardstick is not None, "train_in_lockstep(..., yardstick=True) measures it"
        pairs = zip(self.difference.rounds, self.yardstick.rounds, strict=True)
        return [(ours.weights or 0.0) / max(own.weights or 0.0, _TINY) for ours, own in pairs]

    def loss_factors(self) -> list[float]:
        """Per round, the worst loss term's difference over the yardstick's worst."""
        assert self.yardstick is not None, "train_in_lockstep(..., yardstick=True) measures it"
        pairs = zip(self.difference.rounds, self.yardstick.rounds, strict=True)
        return [ours.worst_loss[1] / max(own.worst_loss[1], _TINY) for ours, own in pairs]

    def loss_bounds(
        self, loss: float = LOSS_BOUND, num_rounds: int = LOSS_ROUNDS
    ) -> dict[str, list[float]]:
        """By term and round, ``loss``, or 4 times what one ulp does where that is more.

        A D_Breg of nearly equal outputs is a difference of rounded numbers. It is about delta^2
        of outputs that are delta apart, and rounding moves delta: so what the yardstick's rounds
        have in common is the change of sqrt(D_Breg), and of the other terms the relative change.
        """
        rounds = range(len(self.difference.rounds[:num_rounds]))
        bounds = {}
        for name in self.difference.rounds[0].losses:
            sizes = [self._resolution_size(name, i) for i in rounds]
            moved = 0.0
            if self.yardstick:
                own = [self.yardstick.rounds[i].losses[name] for i in rounds]
                moved = max(x * size for x, size in zip(own, sizes, strict=True))
            bounds[name] = [max(loss, ULP_FACTOR * moved / x if x else 0.0) for x in sizes]
        return bounds

    def _resolution_size(self, name: str, i: int) -> float:
        """What a term's relative rounding error in round i is inversely proportional to."""
        if not name.endswith("/bregman"):
            return 1.0
        return math.sqrt(max(abs(self.losses[i][side][name]) for side in "ab"))

    def problems(
        self,
        gradient: float = GRADIENT_BOUND,
        loss: float = LOSS_BOUND,
        num_rounds: int = LOSS_ROUNDS,
        factor: float | None = None,
    ) -> list[str]:
        """Every task's worst gradient and every term's first round that miss their bounds.

        Args:
            gradient: bound on every tensor's relative gradient difference in the first round.
            loss: bound on every loss term's relative difference in the first ``num_rounds``; with
                a yardstick see ``loss_bounds``.
            factor: bound on the final weights' difference as a factor of the yardstick's.
        """
        problems = list(self.unlike)
        for task, difference in self.difference.gradients.items():
            name, worst = difference.worst
            if not worst <= gradient:
                problems.append(
                    f"gradient of {task}: {name} differs by {worst:.1e} > {gradient:.0e}"
                )
        for name, bounds in self.loss_bounds(loss, num_rounds).items():
            for i, bound in enumerate(bounds):
                value = self.difference.rounds[i].losses[name]
                if not value <= bound:
                    problems.append(f"round {i + 1}: {name} differs by {value:.1e} > {bound:.1e}")
                    break
        if factor is not None and not self.weight_factors()[-1] <= factor:
            ratio = self.weight_factors()[-1]
            problems.append(
                f"weights differ by {ratio:.1f} times the yardstick, more than {factor:g}"
            )
        return problems

    def assert_same(self, **bounds) -> None:
        """AssertionError with all ``problems``, if there are any."""
        problems = self.problems(**bounds)
        assert not problems, "\n".join(problems)

    def to_dict(self) -> dict:
        """Everything as JSON-serialisable values."""
        return asdict(self) | {"problems": self.problems()}

    def text(self) -> str:
        """Tables for the terminal."""
        parts = [_heading(self)]
        if self.unlike:
            parts += ["\n".join(["unlike:", *(f"  {line}" for line in self.unlike)])]
        parts += [_mean_table(self)] if self.unlike else []
        parts += [_gradient_table(self.difference), _round_table(self)]
        return "\n\n".join([*parts, _verdict(self)])


# Tables


def _heading(c: Comparison) -> str:
    count = len(c.losses)
    return f"{c.recipe}, seed {c.seed}, {count} rounds: a = {c.labels[0]}, b = {c.labels[1]}"


def _mean_table(c: Comparison) -> str:
    """Each loss term's mean over all rounds in which it is."""
    rows = [("loss term", "a", "b")]
    for name in dict.fromkeys(name for here in c.losses for side in "ab" for name in here[side]):
        values = [[here[side][name] for here in c.losses if name in here[side]] for side in "ab"]
        rows.append((name, *(f"{statistics.fmean(v):.4g}" if v else "—" for v in values)))
    lines = (f"  {line}" for line in columns(rows))
    return "\n".join([f"means of {len(c.losses)} rounds", *lines])


def _gradient_table(difference: Difference) -> str:
    lines = ["gradients of the first round, difference relative to each tensor's norm"]
    for task, gradients in difference.gradients.items():
        name, worst = gradients.worst
        if not gradients.relative:
            lines.append(f"  {task:<8} no tensor in common")
            continue
        median = statistics.median(gradients.relative.values())
        lines.append(
            f"  {task:<8} worst {worst:.1e} ({name}), median {median:.1e}, "
            f"{len(gradients.relative)} tensors"
        )
    if vanishing := sorted(difference.vanishing):
        lines.append("  truly zero, left out (norm below 1e-06 of the largest):")
        lines += [f"    {name}" for name in vanishing]
    return "\n".join(lines)


def _round_table(c: Comparison) -> str:
    """A line for each of the first ten rounds, then for about twenty more."""
    header = f"{'round':>5}  {'losses':>7}  {'worst term':<16} {'weights':>7}  "
    own = c.yardstick is not None
    header += f"{'x ulp: losses':>13} {'weights':>7}  " if own else ""
    lines = [header + "worst tensor"]
    count = len(c.difference.rounds)
    for i in range(count):
        if i < LOSS_ROUNDS or i == count - 1 or (i + 1) % max(count // 20, 1) == 0:
            lines.append(_round_line(c, i))
    return "\n".join(lines)


def _round_line(c: Comparison, i: int) -> str:
    ours = c.difference.rounds[i]
    name, worst = ours.worst_loss
    weights = "—" if ours.weights is None else f"{ours.weights:.1e}"
    line = f"{i + 1:>5}  {worst:7.1e}  {name:<16} {weights:>7}  "
    if c.yardstick is not None:
        line += f"{c.loss_factors()[i]:13.2g} {c.weight_factors()[i]:7.2g}  "
    return line + f"{ours.worst:.1e} {ours.worst_tensor}"


def _verdict(c: Comparison) -> str:
    lines = [
        f"bounds: gradients {GRADIENT_BOUND:.0e}, losses of {LOSS_ROUNDS} rounds {LOSS_BOUND:.0e}"
    ]
    for name, bounds in c.loss_bounds().items():
        if (bound := max(bounds)) > LOSS_BOUND:
            lines.append(f"  {name} <= {bound:.1e}, {ULP_FACTOR:g} times what one ulp does to a")
    problems = c.problems()
    lines.append("not the same run:" if problems else "the same run up to rounding")
    return "\n".join([*lines, *(f"  {text}" for text in problems)])
