"""The weights that a group's tasks have by the log variances they learn, in written-out passes."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.heads import uncertainty_scale
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.ops.objective import Objective
from sbrrt_fast.ops.task_heads import HeadSpec
from sbrrt_fast.training.step.group import Group


class UncertaintyTable:
    """``model.heads.uncertain_loss`` of groups of these tasks and counts.

    The objective is linear in a task's weight, and so is all that follows from its gradients in the
    outputs. So these take the factor, which is a tensor on the device.

    Args:
        model: whose tasks have log variances. weights: its heads'. group: of its tasks.
        specs: their heads. device: of the tensors.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        weights: HeadWeights,
        group: Group,
        specs: list[HeadSpec],
        device: torch.device,
    ):
        variances = model.log_variances()
        places = torch.tensor([weights.place(variances[name]) for name in group.names])
        scales = torch.tensor([uncertainty_scale(model.tasks[name]) for name in group.names])
        shares, repeats = torch.tensor(group.shares), torch.tensor(group.repeats)
        sizes = torch.tensor([spec.size for spec in specs])
        tasks = torch.arange(len(specs)).repeat_interleave(sizes)
        tensors = (to_device(x, device) for x in (places, scales, shares, repeats * shares, tasks))
        self._places, self._scales, self._shares, self._counts, self._tasks = tensors

    def weigh(self, result: Objective, weights: Tensor, grad_weights: Tensor) -> Objective:
        """The weighed objective; writes the log variances' gradients.

        Args:
            result: with fixed weights. weights, grad_weights: flat, of all heads.
        """
        s = weights.index_select(0, self._places)
        factors = self._scales * torch.exp(-s)
        totals = factors * result.terms[:, 3]
        grad_weights.index_copy_(0, self._places, self._counts / 2 - totals)
        totals = totals + self._counts / 2 * s
        factors = factors.index_select(0, self._tasks)
        adversarial = result.grad_adversarial
        return Objective(
            torch.cat([result.terms[:, :3], totals[:, None]], dim=1),
            factors * result.grad_outputs,
            None if adversarial is None else factors * adversarial,
        )

    def terms(self, weights: Tensor) -> list[dict[str, Tensor]]:
        """Each task's log variance as a term of the round, times its share as all of them are."""
        values = self._shares * weights.index_select(0, self._places)
        return [{"log_variance": value} for value in values.unbind()]
