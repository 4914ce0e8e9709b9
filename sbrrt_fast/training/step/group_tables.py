"""What a group's heads, losses and Jacobian are, from its tasks and counts alone."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.ops.objective import LossSpec, ObjectiveTable
from sbrrt_fast.ops.task_heads import HeadSpec, HeadTable
from sbrrt_fast.training.step.group import Group


class OneOutput:
    """The examples with one number each, the first of a group's: how outputs depend on it.

    An example's cotangent is a number c; that of its outputs is c in one output, and (-c, c) / 2 in
    the logits of two classes, whose difference is the number.

    Args:
        specs: heads of the tasks that come first. num_sequences: theirs, padding too.
        num_tasks_sequences: of each example of the tasks.

    Attributes:
        num_examples, num_outputs: of these tasks.
        example_of_sequence: int64 [num_sequences]; ``num_examples`` for padding.
        example_of_output: int64 [num_outputs]. unit: float32 [num_outputs], the outputs' cotangent
            of the number. lift: float32 [num_outputs], the outputs' change with it.
    """

    def __init__(self, specs: list[HeadSpec], num_sequences: int, device: torch.device):
        self.num_examples = sum(spec.num_examples for spec in specs)
        self.num_outputs = sum(spec.size for spec in specs)
        sequences = torch.full((num_sequences,), self.num_examples)
        outputs, units, first = [], [], 0
        for spec in specs:
            examples = torch.arange(first, first + spec.num_examples)
            sequences[spec.rows.start : spec.rows.stop] = examples.repeat_interleave(
                spec.sequences_per_example
            )
            outputs.append(examples.repeat_interleave(spec.num_outputs))
            unit = [1.0] if spec.num_outputs == 1 else [-1.0, 1.0]
            units.append(torch.tensor(unit).repeat(spec.num_examples))
            first += spec.num_examples
        unit = torch.cat(units)
        self.example_of_sequence = sequences.to(device)
        self.example_of_output = torch.cat(outputs).to(device)
        count = torch.bincount(torch.cat(outputs), minlength=self.num_examples)
        self.unit, self.lift = (x.to(device) for x in (unit, unit / count[torch.cat(outputs)]))
        self._is_plain = self.num_outputs == self.num_examples
        matrix = torch.zeros(self.num_examples + 1, self.num_outputs)
        matrix[torch.cat(outputs), torch.arange(self.num_outputs)] = (
            unit / count[torch.cat(outputs)]
        )
        self._reduce = matrix.to(device)

    def numbers(self, cotangents: Tensor) -> Tensor:
        """float32 [num_examples + 1]: each example's c from the outputs' cotangents; last 0."""
        return self._reduce @ cotangents

    def outputs(self, changes: Tensor) -> Tensor:
        """float32 [num_outputs]: the outputs' changes from each example's."""
        return self.lift * changes[self.example_of_output]


class GroupTables:
    """The tables of groups of these tasks and counts, on a device.

    Attributes:
        heads: of the group. objective: its losses. smoothness: the divergences alone, each of
            weight 1. one_output: of the tasks that come first, or None.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        weights: HeadWeights,
        config: RunConfig,
        group: Group,
        device: torch.device,
    ):
        places = zip(group.names, group.counts, group.firsts, strict=True)
        specs = [weights.spec(*place) for place in places]
        losses = [
            _loss_spec(model, name, spec, model.tasks[name].weight)
            for name, spec in zip(group.names, specs, strict=True)
        ]
        alone = [_loss_spec(model, n, s, 1.0) for n, s in zip(group.names, specs, strict=True)]
        smart, bregman = config.smart.weight, config.bregman.weight
        self.heads = HeadTable(specs, model.config.hidden_size, device)
        self.objective = ObjectiveTable(losses, smart, bregman, device)
        self.smoothness = ObjectiveTable(alone, 1.0, 0.0, device)
        first = [spec for spec in specs if spec.first_sequence < group.num_row_sequences]
        self.one_output = OneOutput(first, group.num_row_sequences, device) if first else None


def _loss_spec(model: MultiTaskModel, name: str, head: HeadSpec, weight: float) -> LossSpec:
    task, units = model.tasks[name], model.label_units(name)
    loss = "squared" if task.is_regression else task.loss_name
    return LossSpec(
        loss,
        head.num_examples,
        head.num_outputs,
        weight,
        task.label_smoothing,
        model.heads[name].class_weights,
        None if units is None else units.mean,
        None if units is None else units.scale,
    )
