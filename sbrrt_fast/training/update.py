"""What happens after a backward pass: clipping, AdamW, the teacher's moving average.

``TorchUpdate`` is the reference: torch's own clipping and AdamW, then the average. ``FusedUpdate``
is the same in one pass over all tensors (``ops.adamw_ema``). Both keep their state in the same
torch.optim.AdamW, so a saved run does not depend on which of them made it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import adamw_ema_, clip_factor, gradient_norm, native_reason
from sbrrt_fast.smart.bregman import Teacher, beta_at
from sbrrt_fast.training.optimizer import clip_gradients


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
        """Update number ``step``, from 1; returns the gradients' norm before clipping."""
        norm = clip_gradients([p for p, _ in self.members], self.clip_norm)
        self.optimizer.step()
        if self.teacher is not None:
            self.teacher.update(step, self.num_steps)
        return norm


class FusedUpdate(TorchUpdate):
    """The same update by one op over all tensors."""

    backend = "auto"

    @torch.no_grad()
    def __call__(self, step: int) -> Tensor:
        active = [(p, group) for p, group in self.members if p.grad is not None]
        norm = gradient_norm([p.grad for p, _ in active], backend=self.backend)
        factor = clip_factor(norm, self.clip_norm)
        beta = 1.0 if self.teacher is None else beta_at(step, self.num_steps, self.teacher.config)
        averages = {} if self.teacher is None else self.teacher.averages_by_parameter()
        for members in self._by_count(active):
            self._update(members, factor, averages, beta)
        self._move_idle(averages, beta)
        return norm

    def _by_count(self, active: list) -> list[list]:
        """Parameters that were updated equally often; a head's are only in its task's turns."""
        groups: dict[float, list] = {}
        for parameter, group in active:
            state = self.optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            groups.setdefault(state["step"].item(), []).append((parameter, group, state))
        return list(groups.values())

    def _update(self, members: list, factor: Tensor, averages: dict, beta: float) -> None:
        params, groups, states = zip(*members, strict=True)
        empty, device = params[0].new_empty(0), params[0].device
        adamw_ema_(
            params,
            [p.grad for p in params],
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
            ema=[averages.get(id(p), empty) for p in params] if averages else (),
            ema_beta=beta,
            backend=self.backend,
        )

    def _move_idle(self, averages: dict[int, Tensor], beta: float) -> None:
        """The teacher follows parameters without a gradient too, which have not moved."""
        idle = [p for p, _ in self.members if p.grad is None and id(p) in averages]
        if idle:
            torch._foreach_lerp_([averages[id(p)] for p in idle], idle, 1.0 - beta)


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
