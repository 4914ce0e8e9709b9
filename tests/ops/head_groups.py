"""Groups of tasks with the model's heads, as ``ops.task_heads`` and ``ops.objective`` take them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.heads import build_head, class_logits, task_loss
from sbrrt_fast.ops.objective import LossSpec, ObjectiveTable
from sbrrt_fast.ops.task_heads import HeadSpec, HeadTable
from sbrrt_fast.smart.divergence import divergence_of
from tests.all_tasks import TASKS

LOSSES = {"mse": "squared"}
GAP = 3  # elements between heads in the flat weights, that are no head's
SMART_WEIGHT, BREGMAN_WEIGHT = 0.7, 1.3
MANY_KINDS = {"topics": replace(TASKS["sst"], num_classes=300)}
WEIGHTED = {
    "smooth": replace(TASKS["sst"], label_smoothing=0.1, class_weights=(0.2, 1.0, 1.0, 3.0, 0.5)),
    "smooth yes-no": replace(TASKS["yes-no"], label_smoothing=0.3, class_weights=(0.4, 2.0)),
}
ALL = TASKS | MANY_KINDS | WEIGHTED


@dataclass
class Heads:
    """Heads of some tasks, drawn at random; dtype is that of all tensors but labels.

    Attributes:
        modules: the model's heads. sequences: rows of ``pooled`` of each.
        pooled, factors: [num_sequences + 2 of padding, hidden].
        labels: float32, flat, as they are in the tasks' files.
    """

    names: list[str]
    tasks: list[TaskConfig]
    counts: list[int]
    modules: list[nn.Module]
    table: HeadTable
    weights: Tensor
    pooled: Tensor
    factors: Tensor
    labels: Tensor

    @property
    def sequences(self) -> list[slice]:
        return [slice(s.rows.start, s.rows.stop) for s in self.table.specs]

    def outputs(self, pooled: Tensor, factors: Tensor | None = None) -> Tensor:
        """The modules' outputs, flat; pooled of all tasks."""
        x = pooled if factors is None else pooled * factors
        pairs = zip(self.modules, self.sequences, strict=True)
        return torch.cat([head(x[rows]).flatten() for head, rows in pairs])

    def parameters(self) -> list[nn.Parameter]:
        return [p for m in self.modules for p in m.parameters()]

    def losses(self, smart_weight: float = SMART_WEIGHT) -> ObjectiveTable:
        pairs = zip(self.tasks, self.modules, self.counts, strict=True)
        specs = [_loss_spec(*pair) for pair in pairs]
        return ObjectiveTable(specs, smart_weight, BREGMAN_WEIGHT, "cpu")

    def each(self, *flat: Tensor) -> Iterator[tuple]:
        """(i, task, head, *outputs as the model has them) of each task."""
        parts = [self.table.split(x) for x in flat]
        for i, (task, head) in enumerate(zip(self.tasks, self.modules, strict=True)):
            shaped = [p[i] if task.head == "classes" else p[i][:, 0] for p in parts]
            yield i, task, head, *shaped

    def model_losses(self, outputs: Tensor) -> list[Tensor]:
        """``MultiTaskModel.loss`` of each task."""
        labels, losses = self.labels.split(self.counts), []
        for i, task, head, w in self.each(outputs):
            y = labels[i] if head.units is None else head.units.standardize(labels[i])
            losses.append(task_loss(task, w, y, head.class_weights))
        return losses

    def model_divergences(self, z: Tensor, w: Tensor) -> list[Tensor]:
        """Mean l_s(z, w) of each task, by ``smart.divergence``."""
        return [
            divergence_of(task)(class_logits(task, a), class_logits(task, b)).mean()
            for _, task, _, a, b in self.each(z, w)
        ]


def heads_of(
    names: list[str],
    counts: list[int] | None = None,
    hidden_size: int = 7,
    pair_kind: str = "concat_difference",
    dtype: torch.dtype = torch.float64,
) -> Heads:
    """Heads of tasks of ``ALL``, with gaps of NaN between their weights."""
    tasks, counts = [ALL[n] for n in names], counts or [3 + i % 3 for i in range(len(names))]
    modules = [build_head(t, hidden_size, pair_kind).to(dtype) for t in tasks]
    _randomize(modules)
    specs, weights, offset, row = [], [], 0, 0
    for task, head, count in zip(tasks, modules, counts, strict=True):
        spec = _head_spec(task, head, count, row, offset)
        specs.append(spec)
        for p in [*head.parameters()]:
            weights += [p.detach().flatten(), p.new_full((GAP,), torch.nan)]
        offset, row = sum(x.numel() for x in weights), spec.rows.stop
    pooled, factors = torch.randn(2, row + 2, hidden_size, dtype=dtype)
    factors = 1.25 * (factors > -0.8)
    pooled[row:] = torch.nan  # padding sequences
    labels = torch.cat([_labels(t, c) for t, c in zip(tasks, counts, strict=True)])
    flat = torch.cat(weights) if weights else torch.empty(0, dtype=dtype)
    table = HeadTable(specs, hidden_size, "cpu")
    return Heads(
        names, tasks, counts, modules, table, flat, pooled, factors.to(dtype), labels
    )  # fmt: skip


def _randomize(modules: list[nn.Module]) -> None:
    for module in modules:
        for p in module.parameters():
            nn.init.normal_(p, std=0.5)
        if module.units is not None:
            module.units.double()
        if module.class_weights is not None:
            module.class_weights = module.class_weights.float()


def _head_spec(task: TaskConfig, head: nn.Module, count: int, row: int, offset: int) -> HeadSpec:
    if task.head == "cosine":
        return HeadSpec("cosine", count, row, 1, -1, -1, 5.0)
    kind = head.pair_kind if head.is_siamese else "linear"
    bias_offset = offset + head.classifier.weight.numel() + GAP
    return HeadSpec(kind, count, row, head.num_outputs, offset, bias_offset)


def _loss_spec(task: TaskConfig, head: nn.Module, count: int) -> LossSpec:
    units = head.units
    return LossSpec(
        LOSSES.get(task.loss_name, task.loss_name),
        count,
        task.num_classes if task.head == "classes" else 1,
        task.weight,
        task.label_smoothing,
        head.class_weights,
        units and units.mean,
        units and units.scale,
    )


def _labels(task: TaskConfig, count: int) -> Tensor:
    if task.is_regression:
        low, high = task.label_range
        return low + (high - low) * torch.rand(count)
    return torch.randint(task.num_labels, (count,)).float()
