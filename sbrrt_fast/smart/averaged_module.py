"""A copy of a module whose weights are an average of the module's over training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sbrrt_fast.errors import WeightsError

Module = TypeVar("Module", bound=nn.Module)


class AveragedModule(Generic[Module]):
    """An average of a module's weights, in a module of its own.

    Only trainable parameters are copied and averaged; frozen ones are the student's own tensors.
    Buffers are copied once. Nothing of the copy requires a gradient.

    Args:
        student: the module to follow; it may already have been trained.
        name: of the average, for messages.
    """

    def __init__(self, student: Module, name: str):
        self.student, self.name = student, name
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        self._module = copy.deepcopy(student, memo=frozen).requires_grad_(False)
        copies = dict(self._module.named_parameters())
        trainable = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
        self._averages = {name: copies[name] for name, _ in trainable}
        self._targets = [parameter for _, parameter in trainable]

    @property
    def module(self) -> Module:
        """The copy, in train or eval mode as the student is: both drop out alike."""
        if self._module.training != self.student.training:
            self._module.train(self.student.training)
        return self._module

    def move(self, weight: float, skipped: Tensor | None = None) -> None:
        """Moves every average by ``weight`` of the way to the student's weight.

        Args:
            skipped: bool, 0-dim, on the weights' device; True leaves the averages as they are.
        """
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
            where = f"the saved {self.name}" if name not in tensors else "the model"
            raise WeightsError(
                f"{self.name}: '{name}' is not in {where}; resume with the same model"
            )
        for name, average in self._averages.items():
            if tensors[name].shape != average.shape:
                raise WeightsError(
                    f"{self.name}: '{name}' has shape {tuple(tensors[name].shape)} in the saved "
                    f"state, {tuple(average.shape)} in the model; resume with the same model"
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
