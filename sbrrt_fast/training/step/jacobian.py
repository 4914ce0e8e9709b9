"""The Jacobian of a written-out clean pass: materialised rows, and tangents beside the rows.

``Rows`` are for tasks with one output per example: one pull-back with cotangent 1 gives all of
their J. For the others J is applied by passes over the clean activations, which ``Through`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.model.packed.encoder import KeptRows, PackedEncoder
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.model.packed.layer import Block, Tangent
from sbrrt_fast.training.step.group_tables import OneOutput
from sbrrt_fast.training.step.head_pass import HeadOutputs, HeadPass


class Rows:
    """J of examples with one number each, whose row is zero at other examples' tokens.

    Args:
        rows: float32 [num_tokens, hidden]: of every token the part of its example's row.
        one_output: the examples. sequence: int64 [num_tokens], the sequence of each token.
    """

    def __init__(self, rows: Tensor, one_output: OneOutput, sequence: Tensor):
        self.rows, self.one_output = rows, one_output
        self._example = one_output.example_of_sequence[sequence]
        examples = torch.arange(one_output.num_examples, device=rows.device)
        self._members = (self._example == examples[:, None]).to(rows.dtype)

    def jvp(self, delta: Tensor) -> Tensor:
        """The outputs' changes [num_outputs] with that of the embeddings [num_tokens, hidden]."""
        return self.one_output.outputs(self._members @ torch.linalg.vecdot(self.rows, delta))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """The embeddings' gradient [num_tokens, hidden] from the outputs' [num_outputs]."""
        numbers = self.one_output.numbers(cotangents)
        return self.rows * numbers[self._example][:, None]

    def finish(self, cotangents: Tensor) -> KeptRows:
        """The rest of a backward from the outputs' gradient: factors, one per example, of every
        cotangent that the pull-back has kept, ``rows`` too."""
        numbers = self.one_output.numbers(cotangents)
        return KeptRows(numbers[self._example], numbers[self.one_output.example_of_sequence])


class Through:
    """J of examples with several outputs, by passes over their clean activations.

    Args:
        student: with the activations. heads: of the whole group. weights: the heads'.
        outputs: of the clean pass. tangent: the examples' rows, and where their tangent goes.
    """

    def __init__(
        self,
        student: PackedEncoder,
        heads: HeadPass,
        weights: HeadWeights,
        outputs: HeadOutputs,
        tangent: Tangent,
    ):
        self.student, self.heads, self.weights = student, heads, weights
        self.outputs, self.tangent = outputs, tangent

    @property
    def block(self) -> Block:
        return self.tangent.block

    def jvp(self, delta: Tensor) -> Tensor:
        """The whole group's outputs' changes with that of these examples' embeddings."""
        self.student.input(self.tangent.rows).copy_(delta)
        self.student.lower(self.tangent.rows)
        return self.outputs_of(self.student.forward(None, self.tangent))

    def outputs_of(self, hidden: Tensor) -> Tensor:
        """The same from the last hidden states of all rows."""
        change = hidden[slice(*self.tangent.rows)]
        return self.heads.jvp(self.outputs, self.weights, change, self.block.start)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """These examples' embeddings' gradient from the whole group's outputs'."""
        grad = self.heads.vjp(self.outputs, self.weights, cotangents)
        place = self.student.last_cotangent(self.block.rows)
        self.heads.spread(self.outputs, grad, place, self.block.start)
        return self.student.pull_back(self.block)


class GroupJacobian:
    """J of a group: ``Rows`` of its first examples and ``Through`` of the others.

    Args:
        rows, through: either may be None.
    """

    def __init__(self, rows: Rows | None, through: Through | None):
        self.rows, self.through = rows, through

    def jvp(self, delta: Tensor) -> Tensor:
        """[num_outputs] from [num_tokens, hidden]."""
        if self.through is None:
            return self.rows.jvp(delta)
        changes = self.through.jvp(delta[self.through.block.start :])
        if self.rows is not None:
            changes[: self.rows.one_output.num_outputs] = self.rows.jvp(
                delta[: self.through.block.start]
            )
        return changes

    def vjp(self, cotangents: Tensor) -> Tensor:
        """[num_tokens, hidden] from [num_outputs]."""
        if self.rows is None:
            return self.through.vjp(cotangents)
        ours = self.rows.vjp(cotangents[: self.rows.one_output.num_outputs])
        if self.through is None:
            return ours
        return torch.cat([ours, self.through.vjp(cotangents)])
