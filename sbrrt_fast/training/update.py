"""What happens after a backward pass: clipping, AdamW, the teacher's moving average.

``TorchUpdate`` is the reference: torch's own clipping and AdamW, then the average. ``FusedUpdate``
is the same in one pass over all tensors (``ops.adamw_ema``). Both keep their state in the same
torch.optim.AdamW, so a saved run does not depend on which of them made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import (
    RowGradient,
    adamw_ema_,
    adamw_ema_rows_,
    clip_factor,
    gradient_norm,
    native_reason,
)
from sbrrt_fast.smart.bregman import Teacher, beta_at
from sbrrt_fast.training.optimizer import clip_gradients

_NOTHING: Mapping[int, Tensor] = {}


class TorchUpdate:
    """Clips, steps the optimiser, then moves the teacher.

    Args:
        optimizer: over the trainable parameters. teacher: or None.
        clip_norm: largest global gradient norm; 0 does not clip.
        num_steps: of the whole run, for the teacher's schedule.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        teacher: Teacher | None,
        clip_norm: float,
        num_steps: int,
    ):
        self.optimizer, self.teacher = optimizer, teacher
        self.clip_norm, self.num_steps = clip_norm, num_steps
        self.members = [(p, group) for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, step: int) -> Tensor:
        """Update number ``step``, from 1; returns the gradients' norm before clipping.

        Gradients are the parameters' ``grad``; a parameter without one stays as it is.
        """
        norm = clip_gradients([p for p, _ in self.members], self.clip_norm)
        self.optimizer.step()
        if self.teacher is not None:
            self.teacher.update(step, self.num_steps)
        return norm


Copies = Mapping[int, Tensor]
Gradients = Mapping[int, Tensor | RowGradient]


class FusedUpdate(TorchUpdate):
    """The same update by one op over all tensors."""

    backend = "auto"

    def __init__(self, *args):
        super().__init__(*args)
        self._touched: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, step: int) -> Tensor:
        return self.apply(step, {id(p): p.grad for p, _ in self.members if p.grad is not None})

    @torch.no_grad()
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
        found = [gradients[id(p)] for p, _ in self.members if id(p) in gradients]
        norm = _norm_of(found, self.backend)
        factor = clip_factor(norm, self.clip_norm)
        beta = 1.0 if self.teacher is None else beta_at(step, self.num_steps, self.teacher.config)
        teacher = {} if self.teacher is None else self.teacher.averages_by_parameter()
        for (_, dtype), members in self._alike(gradients).items():
            if dtype is None:
                self._update_rows(members, gradients, factor, teacher, beta)
            else:
                self._update(members, gradients, factor, teacher, beta, copies, averages)
        self._move_idle(gradients, teacher, beta)
        return norm

    def _alike(self, gradients: Gradients) -> dict[tuple, list]:
        """Parameters by how often they were updated and their gradient's dtype, None for rows.

        A head's are only updated in its task's turns.
        """
        groups: dict[tuple, list] = {}
        for parameter, group in self.members:
            if (gradient := gradients.get(id(parameter))) is None:
                continue
            state = self.optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            dtype = None if isinstance(gradient, RowGradient) else gradient.dtype
            key = (state["step"].item(), dtype)
            groups.setdefault(key, []).append((parameter, group, state))
        return groups

    def _update_rows(
        self, members: list, gradients: Gradients, factor: Tensor, teacher: Copies, beta: float
    ) -> None:
        for parameter, group, state in members:
            adamw_ema_rows_(
                parameter,
                gradients[id(parameter)],
                self._touched_rows(parameter, state),
                state["exp_avg"],
                state["exp_avg_sq"],
                learning_rate=torch.tensor(
                    group["lr"], dtype=torch.float64, device=parameter.device
                ),
                weight_decay=group["weight_decay"],
                clip_factor=factor,
                step=state["step"].to(parameter.device, non_blocking=True),
                betas=group["betas"],
                eps=group["eps"],
                ema=teacher.get(id(parameter)),
                ema_beta=beta,
                backend=self.backend,
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
        members: list,
        gradients: Gradients,
        factor: Tensor,
        teacher: Copies,
        beta: float,
        copies: Copies,
        averages: Copies,
    ) -> None:
        params, groups, states = zip(*members, strict=True)
        device = params[0].device
        for parameter in params:
            self._touched.pop(id(parameter), None)
        adamw_ema_(
            params,
            [gradients[id(p)] for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            learning_rate=torch.tensor(
                [g["lr"] for g in groups], dtype=torch.float64, device=device
            ),
            weight_decay=[g["weight_decay"] for g in groups],
            clip_factor=factor,
            step=states[0]["step"].to(device, non_blocking=True),
            betas=groups[0]["betas"],
            eps=groups[0]["eps"],
            ema=_entries(teacher, params, torch.float32),
            ema_beta=beta,
            low_precision=_entries(copies, params, torch.bfloat16),
            ema_low_precision=_entries(averages, params, torch.bfloat16),
            backend=self.backend,
        )

    def _move_idle(self, gradients: Gradients, teacher: Copies, beta: float) -> None:
        """The teacher follows parameters without a gradient too, which have not moved."""
        idle = [p for p, _ in self.members if id(p) not in gradients and id(p) in teacher]
        if idle:
            torch._foreach_lerp_([teacher[id(p)] for p in idle], idle, 1.0 - beta)


def _entries(tensors: Copies, params: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each parameter's, or an empty tensor; an empty list if there are none at all."""
    empty = params[0].new_empty(0, dtype=dtype)
    return [tensors.get(id(p), empty) for p in params] if tensors else []


def _norm_of(found: list[Tensor | RowGradient], backend: str) -> Tensor:
    """The 2-norm of all together, in one pass per dtype."""
    gradients = [g.values if isinstance(g, RowGradient) else g for g in found]
    dtypes = sorted({g.dtype for g in gradients}, key=str)
    alike = ([g for g in gradients if g.dtype == dtype] for dtype in dtypes)
    norms = [gradient_norm(group, backend=backend) for group in alike]
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
