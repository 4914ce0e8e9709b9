"""The units in which a head that predicts values is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelUnits(nn.Module):
    """Training units are ``(label - mean) / scale``, so that a label's unit does not matter.

    Outputs, losses and divergences are in training units; predictions and scores in label units.

    Args:
        mean, scale: in label units; scale above 0.
        persistent: whether they are saved with the model; units that follow from the task's record
            are not.

    Attributes:
        mean, scale: float64, 0-dim buffers.
    """

    def __init__(self, mean: float, scale: float, persistent: bool):
        super().__init__()
        for name, value in (("mean", mean), ("scale", scale)):
            buffer = torch.tensor(value, dtype=torch.float64)
            self.register_buffer(name, buffer, persistent=persistent)

    @torch.no_grad()
    def fit(self, labels: Tensor) -> None:
        """Takes mean and standard deviation of ``labels`` [num_examples], at least one.

        Constant labels have a scale of 1.
        """
        low, high = labels.double().aminmax()
        is_constant = bool(low == high)
        self.mean.copy_(low if is_constant else labels.double().mean())
        self.scale.fill_(1.0 if is_constant else labels.double().std(correction=0).item())

    def standardize(self, labels: Tensor) -> Tensor:
        """Labels of any shape and dtype in training units, float64."""
        return (labels.double() - self.mean) / self.scale

    def restore(self, outputs: Tensor) -> Tensor:
        """Outputs of any shape and dtype in label units, float64."""
        return self.mean + self.scale * outputs.double()
