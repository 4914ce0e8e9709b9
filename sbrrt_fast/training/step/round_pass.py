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
) -> Terms:
    """Loss terms ``<task>/<term>`` of a group; its gradients are left with the pass's model.

    Args:
        ascent: None without SMART.
        report: also measure ``<task>/perturbation`` and ``<task>/gain``.
    """
    reports = go_forward(this, ascent, has_teacher, clock, report)
    with clock("backward"):
        terms = this.backward()
    return reports | _by_task(this.group, terms)


def go_forward(
    this: RoundPass,
    ascent: Ascent | None,
    has_teacher: bool,
    clock: StageClock | NoClock,
    report: bool = False,
) -> Terms:
    """All passes before the backward; what ``report`` measures."""
    reports: Terms = {}
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
                reports = measure(this, ascent, delta)
        with clock("adversarial"):
            this.perturb(ascent, delta)
    return reports


def measure(this: RoundPass, ascent: Ascent, delta: Tensor) -> Terms:
    """``<task>/perturbation``, the size of ``delta``, and ``<task>/gain`` over a random one."""
    group, tokens, mask = this.group, this.perturbed, this.perturbed.mask
    noise = this.noise(RANDOM_DIRECTION_SITE)
    with torch.no_grad():
        gains = ascent.gain(this.around, delta, noise, tokens).reshape(-1)
        of_tasks = [
            (tokens.sequence >= first) & (tokens.sequence < first + count) & mask
            for first, count in zip(group.firsts, group.counts, strict=True)
        ]
        sizes = [root_mean_square(delta, in_task) for in_task in of_tasks]
    pairs = zip(sizes, gains, strict=True)
    return _by_task(group, [{"perturbation": size, "gain": gain} for size, gain in pairs])


def root_mean_square(delta: Tensor, mask: Tensor) -> Tensor:
    """A perturbation's [num_tokens, hidden] root mean square over the tokens in ``mask``."""
    total = (delta.double().square() * mask[:, None]).sum()
    return (total / (mask.sum() * delta.shape[-1]).clamp(min=1)).sqrt()


def _by_task(group: Group, terms: list[dict[str, Tensor]]) -> Terms:
    return {
        f"{task}/{name}": value.detach()
        for task, of_task in zip(group.names, terms, strict=True)
        for name, value in of_task.items()
    }
