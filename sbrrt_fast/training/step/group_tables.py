"""What a group's heads, losses and Jacobian are, from its tasks and counts alone."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.ops.objective import LossSpec, ObjectiveTable
from sbrrt_fast.ops.task_heads import HeadSpec, HeadTable
from sbrrt_fast.training.step.group import Group
from sbrrt_fast.training.step.uncertainty import UncertaintyTable

UNITS = {1: [1.0], 2: [-1.0, 1.0]}  # by the number of an example's outputs


class OneOutput:
    """The examples with one number each, the first of a group's: how outputs depend on it.

    An example's cotangent is a number c; that of its outputs is c in one output, and (-c, c) / 2 in
    the logits of two classes, whose difference is the number.

    Args:
        specs: heads of the tasks that come first. num_sequences: theirs, padding too.

    Attributes:
        num_examples, num_outputs: of these tasks.
        example_of_sequence: int64 [num_sequences]; ``num_examples`` for padding.
        example_of_output: int64 [num_outputs]. unit: float32 [num_outputs], the outputs' cotangent
            of the number. lift: float32 [num_outputs], the outputs' change with it.
    """

    def __init__(self, specs: list[HeadSpec], num_sequences: int, device: torch.device):
        self.num_examples = sum(spec.num_examples for spec in specs)
        self.num_outputs = sum(spec.size for spec in specs)
        examples = torch.arange(self.num_examples).split([spec.num_examples for spec in specs])
        sequence = torch.full((num_sequences,), self.num_examples)
        for spec, own in zip(specs, examples, strict=True):
            rows = slice(spec.rows.start, spec.rows.stop)
            sequence[rows] = own.repeat_interleave(spec.sequences_per_example)
        pairs = list(zip(specs, examples, strict=True))
        output = torch.cat([own.repeat_interleave(spec.num_outputs) for spec, own in pairs])
        unit = torch.cat([torch.tensor(UNITS[s.num_outputs] * s.num_examples) for s in specs])
        lift = unit / torch.bincount(output, minlength=self.num_examples)[output]
        reduction = torch.zeros(self.num_examples + 1, self.num_outputs)
        reduction[output, torch.arange(self.num_outputs)] = lift
        tensors = (to_device(x, device) for x in (sequence, output, unit, lift, reduction))
        self.example_of_sequence, self.example_of_output, *others = tensors
        self.unit, self.lift, self._reduction = others

    def numbers(self, cotangents: Tensor) -> Tensor:
        """float32 [num_examples + 1]: each example's c from the outputs' cotangents; last 0."""
        return self._reduction @ cotangents

    def outputs(self, changes: Tensor) -> Tensor:
        """float32 [num_outputs]: the outputs' changes from each example's."""
        if self.num_outputs == self.num_examples:
            return changes
        return self.lift * changes[self.example_of_output]


class GroupTables:
    """The tables of groups of these tasks and counts, on a device.

    Attributes:
        heads: of the group. objective: its losses. smoothness: the divergences alone, each of
            weight 1. one_output: of the tasks that come first, or None.
        output_shares: float32 [num_outputs], the share that each output's task has here of all its
            examples; None where they are all here.
        uncertainty: the weights that tasks learn; None where they are fixed.
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
        losses = [  # a sum of means over batches is one mean, as many times
            _loss_spec(model, name, spec, model.tasks[name].weight * repeats * share)
            for name, repeats, share, spec in zip(
                group.names, group.repeats, group.shares, specs, strict=True
            )
        ]
        alone = [
            _loss_spec(model, name, spec, share)
            for name, share, spec in zip(group.names, group.shares, specs, strict=True)
        ]
        smart, bregman = config.smart.weight, config.bregman.weight
        self.heads = HeadTable(specs, model.config.hidden_size, device)
        self.objective = ObjectiveTable(losses, smart, bregman, device)
        self.smoothness = ObjectiveTable(alone, 1.0, 0.0, device)
        first = [spec for spec in specs if spec.first_sequence < group.num_row_sequences]
        self.one_output = OneOutput(first, group.num_row_sequences, device) if first else None
        self.output_shares = _of_outputs(group.shares, specs, device)
        self.uncertainty: UncertaintyTable | None = None
        if config.round.task_weights == "uncertainty":
            self.uncertainty = UncertaintyTable(model, weights, group, specs, device)


def _of_outputs(
    shares: tuple[float, ...], specs: list[HeadSpec], device: torch.device
) -> Tensor | None:
    """Each output's task's share; None where all are 1."""
    if all(share == 1.0 for share in shares):
        return None
    sizes = torch.tensor([spec.size for spec in specs])
    return to_device(torch.tensor(shares).repeat_interleave(sizes), device)


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
