"""The objective of a group of tasks and its gradient in their outputs, written out.

Per task, with the clean outputs w, the adversarial z and the teacher's t, over its n examples:

    L = weight * (loss + smart_weight * R_s + bregman_weight * D_Breg)
    R_s = smart_factor * mean l_s(z, w),    D_Breg = mean l_s(w, t)

``l_s`` is the symmetric KL of the softmaxes (``cross_entropy``), of the two-class logits (0, x)
(``binary_cross_entropy``), or the squared difference (``squared``): ``ops.symmetric_kl`` has its
delta form. The gradient of R_s flows into z and w, that of D_Breg into w alone. Source: arXiv
1911.03437, equations 1 to 4; ``docs/math/objective.md`` has the gradients.

Tensors of all tasks are flat: task after task, example after example (see ``ops.task_heads``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import CUDA, TRITON, Backend, dtype_name
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.objective_reference import (
    objective_reference,
    smoothness_cotangents_reference,
    smoothness_values_reference,
)
from sbrrt_fast.ops.objective_table import LossSpec, Objective, ObjectiveTable

__all__ = [
    "LossSpec",
    "Objective",
    "ObjectiveTable",
    "objective",
    "smoothness_cotangents",
    "smoothness_values",
]


define(
    "objective_into(Tensor outputs, Tensor labels, Tensor? adversarial, Tensor? targets, "
    "Tensor? smart_values, Tensor[] class_weights, Tensor[] label_means, Tensor[] label_scales, "
    "int[] losses, float[] numbers, float smart_weight, float bregman_weight, float smart_factor, "
    "Tensor(a!) terms, Tensor(b!) grad_outputs, Tensor(c!)? grad_adversarial)",
    "objective.objective_into",
)
define(
    "smoothness_cotangents_into(Tensor outputs, Tensor tangents, int[] losses, Tensor(a!) out)",
    "objective.smoothness_cotangents_into",
)
define(
    "smoothness_values_into(Tensor outputs, Tensor changes, int[] losses, Tensor(a!) out)",
    "objective.smoothness_values_into",
)

MAX_CUDA_TASKS = 64  # kMaxTasks of csrc/cuda/objective.h
MAX_TRITON_CLASSES = 1024  # of kernels.objective, which needs Triton


def _why_not(backend: Backend, table: ObjectiveTable, *tensors: Tensor | None) -> str | None:
    for x in tensors:
        if x is None:
            continue
        if x.dtype != torch.float32:
            return f"{dtype_name(x)} tensors run on the reference"
        if reason := backend.device_reason("a tensor", x):
            return reason
    if backend is CUDA and len(table.specs) > MAX_CUDA_TASKS:
        return f"{len(table.specs)} tasks are above {MAX_CUDA_TASKS}"
    num_classes = max(s.num_outputs for s in table.specs)
    if backend is TRITON and num_classes > MAX_TRITON_CLASSES:
        return f"{num_classes} classes are above {MAX_TRITON_CLASSES}"
    return None


def _objective_why_not(
    backend: Backend,
    table: ObjectiveTable,
    outputs: Tensor,
    labels: Tensor,
    adversarial: Tensor | None,
    targets: Tensor | None,
    smart_factor: float,
    smart_values: Tensor | None,
) -> str | None:
    return _why_not(backend, table, outputs, labels, adversarial, targets, smart_values)


def _run_objective(
    backend: Backend,
    table: ObjectiveTable,
    outputs: Tensor,
    labels: Tensor,
    adversarial: Tensor | None,
    targets: Tensor | None,
    smart_factor: float,
    smart_values: Tensor | None,
) -> Objective:
    terms = empty_floats(outputs, len(table.specs), 4)
    # units that went to another dtype with their model
    means, scales = ([x.double() for x in xs] for xs in (table.label_means, table.label_scales))
    grads = empty_like(outputs), None if adversarial is None else empty_like(adversarial)
    backend.ops.objective_into(
        outputs, labels, adversarial, targets, smart_values, table.class_weights,
        means, scales, table.losses, table.numbers, table.smart_weight,
        table.bregman_weight, smart_factor, terms, *grads,
    )  # fmt: skip
    return Objective(terms, *grads)


def _run_cotangents(
    backend: Backend, table: ObjectiveTable, outputs: Tensor, tangents: Tensor
) -> Tensor:
    out = empty_like(outputs)
    backend.ops.smoothness_cotangents_into(outputs, tangents, table.losses, out)
    return out


def _run_values(
    backend: Backend, table: ObjectiveTable, outputs: Tensor, changes: Tensor
) -> Tensor:
    out = empty_floats(outputs, len(table.specs))
    backend.ops.smoothness_values_into(outputs, changes, table.losses, out)
    return out


_objective = fused_op("objective", _run_objective, _objective_why_not, objective_reference)
_cotangents = fused_op(
    "smoothness_cotangents", _run_cotangents, _why_not, smoothness_cotangents_reference
)
_values = fused_op("smoothness_values", _run_values, _why_not, smoothness_values_reference)


@torch.no_grad()
def objective(
    table: ObjectiveTable,
    outputs: Tensor,
    labels: Tensor,
    adversarial: Tensor | None = None,
    targets: Tensor | None = None,
    smart_factor: float = 1.0,
    smart_values: Tensor | None = None,
    *,
    backend: str,
) -> Objective:
    """The objective's terms per task and its gradients in the outputs.

    Args:
        outputs: flat [table.num_outputs] clean outputs, float32 (the reference: or float64).
        labels: flat float32 [table.num_examples], as they are in the tasks' files. One that is no
            class makes its task's loss and its own gradients NaN.
        adversarial, targets: outputs of the adversarial pass and of the teacher; None where there
            is none, and no such term then.
        smart_factor: on R_s.
        smart_values: [num_tasks], what is reported as R_s instead of ``smart_factor`` times the
            divergence of ``adversarial``; gradients are of the latter.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Raises:
        ValueError: a shape does not fit the table, or ``smart_values`` come without
            ``adversarial``.
        BackendError: the named backend cannot run these inputs.
    """
    _check_shape("objective", "labels", labels, table.num_examples)
    for name, x in (("outputs", outputs), ("adversarial", adversarial), ("targets", targets)):
        if x is not None:
            _check_shape("objective", name, x, table.num_outputs)
    if smart_values is not None:
        if adversarial is None:
            raise ValueError("objective: smart_values need adversarial outputs")
        _check_shape("objective", "smart_values", smart_values, len(table.specs))
    return _objective(
        table, outputs, labels, adversarial, targets, smart_factor, smart_values, backend=backend
    )


@torch.no_grad()
def smoothness_cotangents(
    table: ObjectiveTable, outputs: Tensor, tangents: Tensor, *, backend: str
) -> Tensor:
    """The gradient of each task's mean l_s(w + d, w) in d at d = ``tangents``, to first order.

    Args:
        outputs, tangents: flat [table.num_outputs], w and the change.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        [table.num_outputs].

    Raises:
        ValueError: a shape does not fit the table.
        BackendError: the named backend cannot run these inputs.
    """
    for name, x in (("outputs", outputs), ("tangents", tangents)):
        _check_shape("smoothness_cotangents", name, x, table.num_outputs)
    return _cotangents(table, outputs, tangents, backend=backend)


@torch.no_grad()
def smoothness_values(
    table: ObjectiveTable, outputs: Tensor, changes: Tensor, *, backend: str
) -> Tensor:
    """Mean l_s(w + d, w) of each task, [num_tasks]; small changes keep their relative precision.

    Args, errors raised: see ``smoothness_cotangents``; ``changes`` is d.
    """
    for name, x in (("outputs", outputs), ("changes", changes)):
        _check_shape("smoothness_values", name, x, table.num_outputs)
    return _values(table, outputs, changes, backend=backend)


def _check_shape(op: str, name: str, x: Tensor, size: int) -> None:
    if x.shape != (size,):
        raise ValueError(f"{op}: {name} must be [{size}], got {tuple(x.shape)}")


OPS = (_objective, _cotangents, _values)
