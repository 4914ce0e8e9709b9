"""The momentum teacher of Bregman proximal point optimisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.smart.averaged_module import AveragedModule


def beta_at(step: int, total_steps: int, config: BregmanConfig) -> float:
    """Momentum at optimiser step ``step`` (1 to ``total_steps``).

    ``constant`` is ``config.beta``. ``paper`` is SMART's schedule (arXiv 1911.03437): .99 for the
    first 10% of steps, .999 after.
    """
    assert 1 <= step <= total_steps, f"step {step} is not in 1..{total_steps}"
    if config.schedule == "constant":
        return config.beta
    return 0.99 if 10 * step <= total_steps else 0.999


class Teacher(AveragedModule):
    """Exponential moving average of a module's weights, callable like the module itself.

    SMART (arXiv 1911.03437, section 3.2 and Algorithm 1) keeps theta_t near theta~_t with
    mu * D_Breg(theta, theta~_t), where theta~_0 = theta_0 and, after every S inner steps,
    ``theta~ <- beta theta~ + (1 - beta) theta``. Here S = 1, as in both papers. SMART uses mu = 1
    and the schedule of ``beta_at``; SBRRT mu = 0.8 and a constant beta = 0.95.

    What is copied and what is shared: see ``AveragedModule``.

    Args:
        student: the module to follow; it may already have been trained.
        config: momentum and its schedule.
    """

    def __init__(self, student: nn.Module, config: BregmanConfig):
        super().__init__(student, "teacher")
        self.config = config

    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        """The teacher's output, without a graph."""
        return self.module(*args, **kwargs)

    def update(self, step: int, total_steps: int, skipped: Tensor | None = None) -> None:
        """Moves the averages towards the student after optimiser step ``step`` (from 1).

        Args:
            skipped: bool, 0-dim, on the weights' device; True leaves the averages as they are.
        """
        self.move(1.0 - beta_at(step, total_steps, self.config), skipped)
