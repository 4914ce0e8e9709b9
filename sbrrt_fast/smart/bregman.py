"""The momentum teacher of Bregman proximal point optimisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.errors import WeightsError


def beta_at(step: int, total_steps: int, config: BregmanConfig) -> float:
    """Momentum at optimiser step ``step`` (1 to ``total_steps``).

    ``constant`` is ``config.beta``. ``paper`` is SMART's schedule (arXiv 1911.03437): .99 for the
    first 10% of steps, .999 after.
    """
    assert 1 <= step <= total_steps, f"step {step} is not in 1..{total_steps}"
    if config.schedule == "constant":
        return config.beta
    return 0.99 if 10 * step <= total_steps else 0.999


class Teacher:
    """Exponential moving average of a module's weights, callable like the module itself.

    SMART (arXiv 1911.03437, section 3.2 and Algorithm 1) keeps theta_t near theta~_t with
    mu * D_Breg(theta, theta~_t), where theta~_0 = theta_0 and, after every S inner steps,
    ``theta~ <- beta theta~ + (1 - beta) theta``. Here S = 1, as in both papers. SMART uses mu = 1
    and the schedule of ``beta_at``; SBRRT mu = 0.8 and a constant beta = 0.95.

    Only trainable parameters are copied and averaged; frozen ones are the student's own tensors.
    Buffers are copied once. Nothing of the teacher requires a gradient.

    Args:
        student: the module to follow; it may already have been trained.
        config: momentum and its schedule.
    """

    def __init__(self, student: nn.Module, config: BregmanConfig):
        self.student = student
        self.config = config
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        self._module = copy.deepcopy(student, memo=frozen).requires_grad_(False)
        teacher = dict(self._module.named_parameters())
        trainable = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
        self._averages = {name: teacher[name] for name, _ in trainable}
        self._targets = [parameter for _, parameter in trainable]

    @property
    def module(self) -> nn.Module:
        """The teacher's module, in train or eval mode as the student is: both drop out alike."""
        if self._module.training != self.student.training:
            self._module.train(self.student.training)
        return self._module

    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        """The teacher's output, without a graph."""
        return self.module(*args, **kwargs)

    def update(self, step: int, total_steps: int, skipped: Tensor | None = None) -> None:
        """Moves the averages towards the student after optimiser step ``step`` (from 1).

        Args:
            skipped: bool, 0-dim, on the weights' device; True leaves the averages as they are.
        """
        weight = 1.0 - beta_at(step, total_steps, self.config)
        update_averages(list(self._averages.values()), self._targets, weight, skipped)

    def averages_by_parameter(self) -> dict[int, Tensor]:
        """Each average by the id of the student's parameter that it follows."""
        pairs = zip(self._targets, self._averages.values(), strict=True)
        return {id(parameter): average for parameter, average in pairs}

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by the student's names; frozen ones are not in it."""
        return {name: average.detach() for name, average in self._averages.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the averages of ``state_dict``.

        Raises:
            WeightsError: a name is missing or unknown, or a shape differs.
        """
        for name in set(tensors) ^ set(self._averages):
            where = "the saved teacher" if name not in tensors else "the model"
            raise WeightsError(f"teacher: '{name}' is not in {where}; resume with the same model")
        for name, average in self._averages.items():
            if tensors[name].shape != average.shape:
                raise WeightsError(
                    f"teacher: '{name}' has shape {tuple(tensors[name].shape)} in the saved state, "
                    f"{tuple(average.shape)} in the model; resume with the same model"
                )
            average.copy_(tensors[name])


@torch.no_grad()
def update_averages(
    averages: Sequence[Tensor],
    targets: Sequence[Tensor],
    weight: float,
    skipped: Tensor | None = None,
) -> None:
    """Moves every average by ``weight`` of the way to its target, unless ``skipped`` is True.

    ``skipped`` is read on the device: the host does not wait.
    """
    if skipped is None:
        torch._foreach_lerp_(list(averages), list(targets), weight)
        return
    if averages:
        weights = ~skipped * weight  # float32, as lerp takes a number for float32 tensors
        for average, target in zip(averages, targets, strict=True):
            average.lerp_(target, weights.to(average.dtype))
