"""The losses of a batch's tasks, and where their outputs and labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOSSES = ("cross_entropy", "binary_cross_entropy", "squared")


@dataclass(frozen=True)
class LossSpec:
    """One task's loss.

    Attributes:
        loss: one of ``LOSSES``.
        num_examples: at least 1.
        num_outputs: of an example: the classes of ``cross_entropy``, else 1.
        weight: of the task, a factor on all of its terms.
        label_smoothing: e below 1; see ``data.task.TaskConfig``.
        class_weights: float32 [num_classes], factors on an example's loss by its class; None is 1.
        label_mean, label_scale: float64, 0-dim, of ``squared``: the loss is of
            ``(label - mean) / scale``. Read at each call. None is 0 and 1.
    """

    loss: str
    num_examples: int
    num_outputs: int
    weight: float
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    label_mean: Tensor | None = None
    label_scale: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of its outputs."""
        return self.num_examples * self.num_outputs

    @property
    def num_classes(self) -> int:
        """Number of classes a label may be; 0 of ``squared``."""
        return {"cross_entropy": self.num_outputs, "binary_cross_entropy": 2}.get(self.loss, 0)


class ObjectiveTable:
    """The losses of a group of tasks over one batch.

    Args:
        specs: one per task, at least one.
        smart_weight, bregman_weight: lambda and mu of the objective.
        device: of the tensors.

    Attributes:
        num_outputs: of all tasks together, the length of flat outputs.
        num_examples: likewise, the length of flat labels.
        losses, numbers, class_weights, label_means, label_scales: the specs as the writing ops
            take them; a tensor without elements where there is none.

    Raises:
        ValueError: a spec is out of range.
    """

    def __init__(
        self,
        specs: Sequence[LossSpec],
        smart_weight: float,
        bregman_weight: float,
        device: torch.device | str,
    ):
        self.specs, self.device = tuple(specs), torch.device(device)
        self.smart_weight, self.bregman_weight = smart_weight, bregman_weight
        if not self.specs:
            raise ValueError("ObjectiveTable: there must be at least one task")
        for spec in self.specs:
            _check_spec(spec)
        self.num_outputs = sum(s.size for s in self.specs)
        self.num_examples = sum(s.num_examples for s in self.specs)
        self.losses = [x for s in self.specs for x in _fields(s)]
        self.numbers = [float(x) for s in self.specs for x in (s.weight, s.label_smoothing)]
        self.class_weights = self._tensors("class_weights", torch.float32)
        self.label_means = self._tensors("label_mean", torch.float64)
        self.label_scales = self._tensors("label_scale", torch.float64)

    def _tensors(self, name: str, dtype: torch.dtype) -> list[Tensor]:
        none = torch.empty(0, dtype=dtype, device=self.device)
        tensors = [getattr(spec, name) for spec in self.specs]
        return [none if x is None else x for x in tensors]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views [num_examples, num_outputs] of a flat [num_outputs] vector, one per task."""
        parts = flat.split([s.size for s in self.specs])
        return [p.view(-1, s.num_outputs) for p, s in zip(parts, self.specs, strict=True)]


def _fields(spec: LossSpec) -> list[int]:
    """One task in the order of csrc/common/objective_op.h."""
    return [LOSSES.index(spec.loss), spec.num_examples, spec.num_outputs]


def _check_spec(spec: LossSpec) -> None:
    if spec.loss not in LOSSES:
        raise ValueError(f"LossSpec: loss must be one of {', '.join(LOSSES)}, got {spec.loss}")
    if min(spec.num_examples, spec.num_outputs) < 1 or not 0 <= spec.label_smoothing < 1:
        raise ValueError(f"LossSpec: numbers must be positive, smoothing in [0, 1), got {spec}")
    if spec.loss != "cross_entropy" and spec.num_outputs != 1:
        raise ValueError(f"LossSpec: {spec.loss} is of one output, got {spec.num_outputs}")
    weights = spec.class_weights
    if weights is not None and weights.shape != (spec.num_classes,):
        shapes = f"[{spec.num_classes}], got {tuple(weights.shape)}"
        raise ValueError(f"LossSpec: class_weights of {spec.loss} must be {shapes}")
    if (spec.label_mean is None) != (spec.label_scale is None):
        raise ValueError("LossSpec: label_mean and label_scale come together")


class Objective(NamedTuple):
    """What ``objective`` computes.

    Attributes:
        terms: [num_tasks, 4], the loss, R_s, D_Breg and the total of each task; 0 where there is
            none.
        grad_outputs: [num_outputs], of the summed totals in the clean outputs.
        grad_adversarial: likewise in the adversarial outputs, or None without them.
    """

    terms: Tensor
    grad_outputs: Tensor
    grad_adversarial: Tensor | None
