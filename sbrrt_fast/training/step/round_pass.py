"""A round's losses and their gradients, in the order of ``docs/step.md``.

A pass takes one group of batches through the encoder and the heads: under autograd
(``autograd_pass``) or written out (``written_out``). What a round does with it is here.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sbrrt_fast.model.dropout import RANDOM_DIRECTION_SITE
from sbrrt_fast.smart.ascent import Ascent, CleanPass, Tokens
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.step.group import Group

CLEAN_PASS, ADVERSARIAL_PASS, TEACHER_PASS = 0, 1, 2
"""Which masks a pass draws, where they are not shared."""

Terms = dict[str, Tensor]
Measured = dict[str, Tensor]  # [2] each: numerator and denominator of a figure


class RoundPass(Protocol):
    """One group of batches on its way through a round.

    Attributes:
        group: the batches. perturbed: which tokens the ascent may move.
        around: the clean pass, as the ascent asks it.
    """

    group: Group
    perturbed: Tokens
    around: CleanPass

    def clean(self, ascent: Ascent | None) -> None:
        """The clean outputs, and what an ascent needs of them."""

    def climb(self, ascent: Ascent) -> Tensor:
        """The perturbation [num_tokens, hidden]."""

    def perturb(self, ascent: Ascent, delta: Tensor) -> None:
        """The adversarial outputs."""

    def teach(self) -> None:
        """The teacher's outputs, which nothing needs before ``backward``."""

    def backward(self) -> list[dict[str, Tensor]]:
        """Leaves the gradients of all losses; returns each task's terms.

        They are ``loss``, ``smart`` (with an ascent), ``bregman`` (with a teacher) and ``total``.
        """

    def noise(self, site: int) -> Tensor:
        """Standard normal, float32 [num_tokens, hidden]."""


def differentiate(
    this: RoundPass,
    ascent: Ascent | None,
    has_teacher: bool,
    clock: StageClock | NoClock,
    report: bool = False,
) -> tuple[Terms, Measured]:
    """Loss terms ``<task>/<term>`` of a group, and what is measured; its gradients are left with
    the pass's model.

    Args:
        ascent: None without SMART.
        report: also ``measure``.
    """
    measured = go_forward(this, ascent, has_teacher, clock, report)
    with clock("backward"):
        terms = this.backward()
    return _by_task(this.group, terms), measured


def go_forward(
    this: RoundPass,
    ascent: Ascent | None,
    has_teacher: bool,
    clock: StageClock | NoClock,
    report: bool = False,
) -> Measured:
    """All passes before the backward; what ``report`` measures."""
    measured: Measured = {}
    with clock("clean"):
        this.clean(ascent)
    if has_teacher:
        with clock("teacher"):
            this.teach()
    if ascent is not None:
        with clock("ascent"):
            delta = this.climb(ascent)
        if report:
            with clock("report"):
                measured = measure(this, ascent, delta)
        with clock("adversarial"):
            this.perturb(ascent, delta)
    return measured


def measure(this: RoundPass, ascent: Ascent, delta: Tensor) -> Measured:
    """What ``figures`` makes of ``<task>/perturbation`` and ``<task>/gain``, float64 [2] each."""
    group, tokens, mask = this.group, this.perturbed, this.perturbed.mask
    noise = this.noise(RANDOM_DIRECTION_SITE)
    with torch.no_grad():
        compared = torch.stack(ascent.compared(this.around, delta, noise, tokens)).double()
        values = compared.reshape(2, -1).unbind(1)
        found = []
        for i, share in enumerate(group.shares):
            first, end = group.firsts[i], group.firsts[i] + group.counts[i]
            in_task = (tokens.sequence >= first) & (tokens.sequence < end) & mask
            size = squared_size(delta, in_task if share else in_task & False)
            found.append({"perturbation": size, "gain": share * values[i]})
    return _by_task(group, found)


def squared_size(delta: Tensor, mask: Tensor) -> Tensor:
    """Of a perturbation [num_tokens, hidden] over the tokens in ``mask``: float64 [2], the sum of
    its squares and the number of its elements."""
    total = (delta.double().square() * mask[:, None]).sum()
    return torch.stack([total, (mask.sum() * delta.shape[-1]).double()])


def figures(measured: Measured) -> Terms:
    """``<task>/perturbation``, its root mean square, and ``<task>/gain``, R_s over that of a random
    direction, from the sums over a step of what ``measure`` found."""
    return {
        name: (above / below.clamp(min=1)).sqrt()
        if name.endswith("/perturbation")
        else above / below
        for name, (above, below) in measured.items()
    }


def _by_task(group: Group, terms: list[dict[str, Tensor]]) -> Terms:
    return {
        f"{task}/{name}": value.detach()
        for task, of_task in zip(group.names, terms, strict=True)
        for name, value in of_task.items()
    }
