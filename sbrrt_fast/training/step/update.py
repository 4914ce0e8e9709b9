"""What happens after a backward pass: clipping, AdamW, the teacher's moving average.

``TorchUpdate`` is the reference. ``FusedUpdate`` does it in one pass over all tensors
(``ops.adamw_ema``). Both keep their state in a torch.optim.AdamW, so a saved run does not depend on
which of them made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import (
    RowGradient,
    adamw_ema_,
    adamw_ema_rows_,
    native_reason,
)
from sbrrt_fast.ops.gradient_norm import ClippedNorm, clipped_gradient_norm
from sbrrt_fast.smart.bregman import Teacher, beta_at
from sbrrt_fast.training.step.frozen import Frozen
from sbrrt_fast.training.step.torch_update import TorchUpdate
from sbrrt_fast.training.step.update_counts import UpdateCounts

Copies = Mapping[int, Tensor]
Gradients = Mapping[int, Tensor | RowGradient]
Structure = tuple[int, ...]  # index in ``members`` of each parameter with a gradient

_NOTHING: Copies = {}


@dataclass(frozen=True)
class Plan:
    """What an update of certain parameters needs, whatever their gradients are.

    Attributes:
        indices: of the parameters, in ``members``. ones: see ``UpdateCounts``.
        num_numbers: how many numbers the host sends, see ``FusedUpdate.numbers``.
    """

    indices: Structure
    ones: Tensor
    num_numbers: int


class FusedUpdate(TorchUpdate):
    """The update by one op over all tensors.

    What the host knows (the rates) is apart from what the device does: ``plan`` and ``numbers`` are
    the host's, ``run`` sends work to the device and can be captured.
    """

    backend = "auto"

    def __init__(self, *args):
        super().__init__(*args)
        self._touched: dict[int, tuple[Tensor, Tensor]] = {}
        self._counts = UpdateCounts(len(self.members), self.device)
        self._plans: dict[Structure, Plan] = {}
        none = torch.empty(0, device=self.device)
        self._empty = none, none.to(torch.bfloat16)

    @torch.no_grad()
    def __call__(self, step: int) -> Tensor:
        return self.apply(step, {id(p): p.grad for p, _ in self.members if p.grad is not None})

    def apply(
        self,
        step: int,
        gradients: Gradients,
        copies: Copies = _NOTHING,
        averages: Copies = _NOTHING,
    ) -> Tensor:
        """The update with gradients that are not the parameters' ``grad``.

        Args:
            gradients: float32 or bfloat16, or of some rows, by id of the parameter.
            copies, averages: bfloat16 copies of parameters and of their teacher's averages to be
                written in the same pass, by id of the parameter.
        """
        plan = self.plan(self.structure_of(gradients))
        numbers = to_device(torch.tensor(self.numbers(plan), dtype=torch.float64), self.device)
        return self.run(plan, numbers, gradients, self.beta_at(step), copies, averages)

    def structure_of(self, gradients: Gradients) -> Structure:
        """Which parameters have a gradient; see ``plan``."""
        return tuple(i for i, (p, _) in enumerate(self.members) if id(p) in gradients)

    def plan(self, structure: Structure) -> Plan:
        """Of an update of these parameters, which have a state in the optimiser from now on."""
        self._refresh_members()
        self._init_state(structure)
        if structure not in self._plans:
            ones = self._counts.ones_of(structure)
            self._plans[structure] = Plan(structure, ones, len(self.members))
        return self._plans[structure]

    def frozen(self, plan: Plan) -> Frozen:
        """The memory and the settings that a captured ``run`` of this plan depends on."""
        weights = [p for p, _ in self.members]
        if self.teacher is not None:
            weights += self.teacher.averages_by_parameter().values()
        return Frozen(self.optimizer, weights, [self.members[i][0] for i in plan.indices])

    def numbers(self, plan: Plan) -> list[float]:
        """Every parameter's learning rate, for an update that is sent now."""
        self._counts.send()
        return [group["lr"] for _, group in self.members]

    def take_num_skipped(self) -> int:
        return self._counts.take_num_skipped()

    def beta_at(self, step: int) -> float:
        """The teacher's momentum in update number ``step``; 1 without a teacher."""
        config = self.teacher and self.teacher.config
        return beta_at(step, self.num_steps, config) if config else 1.0

    @torch.no_grad()
    def run(
        self,
        plan: Plan,
        numbers: Tensor,
        gradients: Gradients,
        beta: float,
        copies: Copies = _NOTHING,
        averages: Copies = _NOTHING,
    ) -> Tensor:
        """The device's part; returns the gradients' norm before clipping.

        Args:
            numbers: float64, the result of ``numbers`` on the device. beta: the teacher's momentum.
        """
        grads = [gradients[id(self.members[i][0])] for i in plan.indices]
        norm, factor, is_made = self._clipped_norm(grads)
        self._counts.add(plan.ones, is_made)
        teacher = {} if self.teacher is None else self.teacher.averages_by_parameter()
        common = {"clip_factor": factor, "ema_beta": beta, "backend": self.backend}
        self._update(numbers, gradients, (teacher, copies, averages), common)
        for i, gradient in zip(plan.indices, grads, strict=True):
            if isinstance(gradient, RowGradient):
                self._update_rows(i, numbers, gradient, teacher, common)
        return norm

    def _clipped_norm(self, grads: list[Tensor | RowGradient]) -> ClippedNorm:
        if not grads:  # of a task without weights, where no layer trains yet
            one = torch.ones((), device=self.device)
            return ClippedNorm(torch.zeros_like(one), one, one)
        values = [g.values if isinstance(g, RowGradient) else g for g in grads]
        return clipped_gradient_norm(values, self.clip_norm, backend=self.backend)

    def _refresh_members(self) -> None:
        """An optimiser that has loaded a state has other groups, of the same parameters."""
        groups = self.optimizer.param_groups
        if groups[0] is not self.members[0][1]:
            self.members = [(p, group) for group in groups for p in group["params"]]

    @torch.no_grad()
    def _init_state(self, structure: Structure) -> None:
        """Gives these parameters a state in the optimiser, whose numbers of updates are ours."""
        for i in structure:
            parameter, view = self.members[i][0], self._counts.views[i]
            state = self.optimizer.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] = view.zero_()
            elif state["step"] is not view:
                state["step"] = view.copy_(state["step"])

    def _update_rows(
        self, i: int, rates: Tensor, gradient: RowGradient, teacher: Copies, common: dict
    ) -> None:
        parameter, group = self.members[i]
        state = self.optimizer.state[parameter]
        adamw_ema_rows_(
            parameter,
            gradient,
            self._touched_rows(parameter, state),
            state["exp_avg"],
            state["exp_avg_sq"],
            learning_rate=rates[i],
            weight_decay=group["weight_decay"],
            step=self._counts.views[i],
            betas=group["betas"],
            eps=group["eps"],
            ema=teacher.get(id(parameter)),
            **common,
        )

    def _touched_rows(self, parameter: Tensor, state: dict) -> Tensor:
        """Which rows of a table have moments; looked up anew where the state was replaced."""
        moments = state["exp_avg"], state["exp_avg_sq"]
        known, touched = self._touched.get(id(parameter), (None, None))
        if known is not moments[0]:
            touched = ((moments[0] != 0) | (moments[1] != 0)).any(dim=1)
            self._touched[id(parameter)] = moments[0], touched
        return touched

    def _update(
        self,
        rates: Tensor,
        gradients: Gradients,
        written: tuple[Copies, Copies, Copies],
        common: dict,
    ) -> None:
        """One op over all parameters but tables with a gradient of some rows.

        written: the teacher's averages, bfloat16 copies of parameters and of averages.
        """
        entries = zip(*(self._entry(p, gradients, *written) for p, _ in self.members), strict=True)
        params, grads, means, squares, *others = map(list, entries)
        ema, low, ema_low = (x if of else [] for x, of in zip(others, written, strict=True))
        groups = [group for _, group in self.members]
        adamw_ema_(
            params,
            grads,
            means,
            squares,
            learning_rate=rates,
            weight_decay=[group["weight_decay"] for group in groups],
            step=self._counts.of_parameters,
            betas=groups[0]["betas"],
            eps=groups[0]["eps"],
            ema=ema,
            low_precision=low,
            ema_low_precision=ema_low,
            **common,
        )

    def _entry(
        self,
        parameter: Tensor,
        gradients: Gradients,
        teacher: Copies,
        copies: Copies,
        averages: Copies,
    ) -> tuple[Tensor, ...]:
        """A parameter's entry of each list of ``adamw_ema_``, without elements where it has none.

        The teacher also averages parameters without a gradient, which stay as they are.
        """
        key, none, no_copy = id(parameter), *self._empty
        gradient, average = gradients.get(key), teacher.get(key, none)
        if isinstance(gradient, RowGradient) or (gradient is None and average is none):
            return none, none, none, none, none, no_copy, no_copy
        if gradient is None:
            return parameter, none, none, none, average, no_copy, averages.get(key, no_copy)
        self._touched.pop(key, None)
        state = self.optimizer.state[parameter]
        state = state["exp_avg"], state["exp_avg_sq"], average
        return parameter, gradient, *state, copies.get(key, no_copy), averages.get(key, no_copy)


def build_update(
    optimizer: torch.optim.AdamW,
    teacher: Teacher | None,
    clip_norm: float,
    num_steps: int,
    backend: str = "auto",
) -> TorchUpdate:
    """The fused update where it can run, torch's for ``reference`` or where it cannot.

    Raises:
        BackendError: ``cpu`` or ``triton`` is asked for and cannot run, with the reason.
    """
    parameters: list[nn.Parameter] = [p for g in optimizer.param_groups for p in g["params"]]
    reason = native_reason(parameters, backend)
    if backend not in ("auto", "reference") and reason is not None:
        raise BackendError(f"adamw_ema_ cannot run here ({reason})")
    fused = backend != "reference" and reason is None
    update = (FusedUpdate if fused else TorchUpdate)(optimizer, teacher, clip_norm, num_steps)
    update.backend = backend
    return update
