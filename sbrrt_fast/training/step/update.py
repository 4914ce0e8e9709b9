"""What happens after a backward pass: clipping, AdamW, the teacher's moving average.

``TorchUpdate`` is the reference. ``FusedUpdate`` does it in one pass over all tensors
(``ops.adamw_ema``). Both keep their state in a torch.optim.AdamW, so a saved run does not depend on
which of them made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import (
    RowGradient,
    adamw_ema_,
    adamw_ema_rows_,
    clip_factor,
    gradient_norm,
    native_reason,
)
from sbrrt_fast.smart.bregman import Teacher, beta_at, update_averages
from sbrrt_fast.training.step.frozen import Frozen
from sbrrt_fast.training.step.torch_update import TorchUpdate
from sbrrt_fast.training.step.update_counts import UpdateCounts

_NOTHING: Mapping[int, Tensor] = {}


Copies = Mapping[int, Tensor]
Gradients = Mapping[int, Tensor | RowGradient]


# Index in ``members`` of each parameter with a gradient, and the gradient's dtype; None for rows.
Structure = tuple[tuple[int, torch.dtype | None], ...]


@dataclass(frozen=True)
class TensorGroup:
    """Parameters that one op updates: always updated together, with gradients of one dtype.

    Attributes:
        indices: int64 [num_parameters], in ``members``. dtype: of the gradients; None for rows.
        history: index of the first of all parameters that were always updated together with these.
    """

    indices: np.ndarray
    dtype: torch.dtype | None
    history: int


class FusedUpdate(TorchUpdate):
    """The update by one op over all tensors.

    What the host knows (rates, numbers of updates) is apart from what the device does: ``plan``
    and ``numbers`` are the host's, ``run`` sends work to the device and can be captured.
    """

    backend = "auto"

    def __init__(self, *args):
        super().__init__(*args)
        self._touched: dict[int, tuple[Tensor, Tensor]] = {}
        self._counts = UpdateCounts(len(self.members), self.device)
        self._plans: dict[Structure, list[TensorGroup]] = {}

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
        """Which parameters have a gradient, and of which dtype; see ``plan``."""
        grads = ((i, gradients.get(id(p))) for i, (p, _) in enumerate(self.members))
        return tuple(
            (i, None if isinstance(g, RowGradient) else g.dtype) for i, g in grads if g is not None
        )

    def plan(self, structure: Structure) -> list[TensorGroup]:
        """The ops of an update. A head is only updated in its task's turns, so counts differ."""
        self._refresh_members()
        self._init_state(structure)
        plan = self._plans.get(structure)
        counts = self._counts
        if plan is None:
            counts.split_histories([i for i, _ in structure])
        if plan is None or not all(counts.same_step(g.indices, g.history) for g in plan):
            groups: dict[tuple, list[int]] = {}
            for i, dtype in structure:
                key = dtype, int(counts.histories[i]), counts.sent[i]
                groups.setdefault(key, []).append(i)
            plan = [TensorGroup(np.array(indices), *key[:2]) for key, indices in groups.items()]
            self._plans[structure] = plan
        return plan

    def settle(self) -> None:
        self._counts.settle()

    def frozen(self, plan: list[TensorGroup]) -> Frozen:
        """The memory and the settings that a captured ``run`` of this plan depends on."""
        weights = [p for p, _ in self.members]
        if self.teacher is not None:
            weights += self.teacher.averages_by_parameter().values()
        updated = [self.members[i][0] for tensors in plan for i in tensors.indices]
        return Frozen(self.optimizer, weights, updated)

    def numbers(self, plan: list[TensorGroup]) -> list[float]:
        """Counts the update; for each op the parameters' learning rates and the update's number."""
        numbers: list[float] = []
        for tensors in plan:
            self._counts.sent[tensors.indices] += 1
            numbers += [self.members[i][1]["lr"] for i in tensors.indices]
            numbers.append(self._counts.sent[tensors.indices[0]])
        return numbers

    def beta_at(self, step: int) -> float:
        """The teacher's momentum in update number ``step``; 1 without a teacher."""
        config = self.teacher and self.teacher.config
        return beta_at(step, self.num_steps, config) if config else 1.0

    @torch.no_grad()
    def run(
        self,
        plan: list[TensorGroup],
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
        grads = [gradients[id(p)] for p, _ in self.members if id(p) in gradients]
        norm = _norm_of(grads, self.backend)
        factor = clip_factor(norm, self.clip_norm)
        skipped = factor.isnan()
        teacher = {} if self.teacher is None else self.teacher.averages_by_parameter()
        counts = [len(tensors.indices) + 1 for tensors in plan]
        for tensors, part in zip(plan, numbers.split(counts), strict=True):
            common = {
                "clip_factor": factor,
                "step": self._counts.number(part[-1], tensors.history),
                "ema_beta": beta,
                "backend": self.backend,
            }
            if tensors.dtype is None:
                self._update_rows(tensors, part[:-1], gradients, teacher, common)
            else:
                self._update(tensors, part[:-1], gradients, teacher, copies, averages, common)
        self._average_idle(gradients, teacher, beta, skipped)
        self._counts.skip(skipped, {tensors.history for tensors in plan})
        self._num_skipped.add_(skipped)
        return norm

    def _refresh_members(self) -> None:
        """An optimiser that has loaded a state has other groups, of the same parameters."""
        groups = self.optimizer.param_groups
        if groups[0] is not self.members[0][1]:
            self.members = [(p, group) for group in groups for p in group["params"]]

    def _init_state(self, structure: Structure) -> None:
        """Gives these parameters a state in the optimiser, whose numbers of updates are ours."""
        for i, _ in structure:
            parameter, view = self.members[i][0], self._counts.views[i]
            state = self.optimizer.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] = view
            elif state["step"] is not view:
                self._counts.settle()  # skipped updates are of the state that was replaced
                self._counts.sent[i] = state["step"].item()
                state["step"] = view

    def _update_rows(
        self,
        tensors: TensorGroup,
        rates: Tensor,
        gradients: Gradients,
        teacher: Copies,
        common: dict,
    ) -> None:
        for i, rate in zip(tensors.indices, rates, strict=True):
            parameter, group = self.members[i]
            state = self.optimizer.state[parameter]
            adamw_ema_rows_(
                parameter,
                gradients[id(parameter)],
                self._touched_rows(parameter, state),
                state["exp_avg"],
                state["exp_avg_sq"],
                learning_rate=rate,
                weight_decay=group["weight_decay"],
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
        tensors: TensorGroup,
        rates: Tensor,
        gradients: Gradients,
        teacher: Copies,
        copies: Copies,
        averages: Copies,
        common: dict,
    ) -> None:
        params, groups = zip(*(self.members[i] for i in tensors.indices), strict=True)
        states = [self.optimizer.state[p] for p in params]
        for parameter in params:
            self._touched.pop(id(parameter), None)
        adamw_ema_(
            params,
            [gradients[id(p)] for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            learning_rate=rates,
            weight_decay=[g["weight_decay"] for g in groups],
            betas=groups[0]["betas"],
            eps=groups[0]["eps"],
            ema=_entries(teacher, params, torch.float32),
            low_precision=_entries(copies, params, torch.bfloat16),
            ema_low_precision=_entries(averages, params, torch.bfloat16),
            **common,
        )

    def _average_idle(
        self, gradients: Gradients, teacher: Copies, beta: float, skipped: Tensor
    ) -> None:
        """The teacher also averages parameters without a gradient, which have not moved."""
        idle = [p for p, _ in self.members if id(p) not in gradients and id(p) in teacher]
        update_averages([teacher[id(p)] for p in idle], idle, 1.0 - beta, skipped)


def _entries(tensors: Copies, params: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each parameter's, or an empty tensor; an empty list if there are none at all."""
    empty = params[0].new_empty(0, dtype=dtype)
    return [tensors.get(id(p), empty) for p in params] if tensors else []


def _norm_of(grads: list[Tensor | RowGradient], backend: str) -> Tensor:
    """The 2-norm of all together, in one pass per dtype."""
    tensors = [g.values if isinstance(g, RowGradient) else g for g in grads]
    dtypes = sorted({x.dtype for x in tensors}, key=str)
    by_dtype = ([x for x in tensors if x.dtype == dtype] for dtype in dtypes)
    norms = [gradient_norm(xs, backend=backend) for xs in by_dtype]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


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
