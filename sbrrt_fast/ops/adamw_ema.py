"""AdamW, the teacher's moving average and low-precision copies, in one pass over all tensors.

With the gradient g scaled by the clip factor, a parameter's step t from 1, rate eta and weight
decay l:

    m <- m + (1 - b1) (g - m)
    v <- b2 v + (1 - b2) g^2
    p <- (1 - eta l) p - eta / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    e <- e + (1 - beta) (p - e)

A clip factor that is NaN leaves the update out: nothing is written. So the device alone decides
about an update whose gradient is not finite. A parameter without a gradient stays as it is, and
only its average moves.

Source: arXiv 1711.05101, Algorithm 2, as in torch.optim.AdamW; the average is SMART's teacher
(arXiv 1911.03437, Algorithm 1). ``docs/math/adamw_ema.md`` counts the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import Backend, dtype_name
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define
from sbrrt_fast.ops.gradient_norm import why_not_gradients

define(
    "adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, "
    "Tensor(c!)[] exp_avg_sq, Tensor(d!)[] ema, Tensor(e!)[] low_precision, "
    "Tensor(f!)[] ema_low_precision, Tensor learning_rate, float[] weight_decay, float beta1, "
    "float beta2, float eps, Tensor clip_factor, Tensor step, float ema_beta)",
    "adamw_ema.adamw_ema_",
)
define(
    "adamw_ema_rows_(Tensor(a!) param, Tensor grad, Tensor rows, Tensor(b!) touched, "
    "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) ema, Tensor learning_rate, "
    "float weight_decay, float beta1, float beta2, float eps, Tensor clip_factor, "
    "Tensor step, float ema_beta)",
    "adamw_rows.adamw_ema_rows_",
)


def adamw_ema_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    ema: Sequence[Tensor],
    low_precision: Sequence[Tensor],
    ema_low_precision: Sequence[Tensor],
    learning_rate: Tensor,
    weight_decay: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    clip_factor: Tensor,
    step: Tensor,
    ema_beta: float,
) -> None:
    """See ``adamw_ema_``; any floating dtype."""
    written = {
        "params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "ema": ema,
        "low_precision": low_precision, "ema_low_precision": ema_low_precision,
    }  # fmt: skip
    read = {
        "grads": grads, "learning_rate": learning_rate, "clip_factor": clip_factor, "step": step
    }  # fmt: skip
    _check_write_set("adamw_ema_", written, read)
    left_out = clip_factor.isnan()
    steps = step.double().expand(len(params))
    rates = learning_rate.double().expand(len(params))
    for i, p in enumerate(params):
        if grads[i].numel():
            g = grads[i].to(p.dtype) * clip_factor.to(p.dtype)
            state, numbers = (p, exp_avg[i], exp_avg_sq[i]), (rates[i], weight_decay[i], steps[i])
            _step_reference(*state, g, *numbers, beta1, beta2, eps, left_out)
            _copy(low_precision, i, p, left_out)
        if len(ema) and ema[i].numel():
            _put(ema[i], ema[i].lerp(p, 1 - ema_beta), left_out)
            _copy(ema_low_precision, i, ema[i], left_out)


def _step_reference(p, m, v, g, rate, decay, step, beta1, beta2, eps, left_out) -> None:
    _put(m, m.lerp(g, 1 - beta1), left_out)
    _put(v, (v * beta2).addcmul_(g, g, value=1 - beta2), left_out)
    denominator = v.sqrt() / (1 - beta2**step).sqrt().to(p.dtype) + eps
    kept = p * (1 - rate * decay).to(p.dtype)
    _put(p, kept - (rate / (1 - beta1**step)).to(p.dtype) * (m / denominator), left_out)


def _put(target: Tensor, value: Tensor, left_out: Tensor) -> None:
    """Writes ``value`` into ``target`` unless the bool ``left_out`` is set, on the device."""
    target.copy_(torch.where(left_out, target, value))


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table that is zero in most rows, such as an embedding's.

    Attributes:
        rows: int64 [num_rows], ascending, each once. values: float32 [num_rows, width].
    """

    rows: Tensor
    values: Tensor

    def dense(self, table: Tensor) -> Tensor:
        """The same gradient in the table's shape."""
        return torch.zeros_like(table).index_copy_(0, self.rows, self.values.to(table.dtype))


def adamw_ema_rows_reference(
    param: Tensor,
    grad: Tensor,
    rows: Tensor,
    touched: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor,
    learning_rate: Tensor,
    weight_decay: float,
    *numbers,
) -> None:
    """See ``adamw_ema_rows_``; any floating dtype."""
    state = {"param": param, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "ema": ema}
    read = {"grad": grad, "rows": rows, "learning_rate": learning_rate}
    _check_write_set("adamw_ema_rows_", {**state, "touched": touched}, read)
    dense = RowGradient(rows, grad).dense(param)
    state = ([exp_avg], [exp_avg_sq], [ema] if ema.numel() else [], [], [])
    adamw_ema_reference([param], [dense], *state, learning_rate, [weight_decay], *numbers)
    clip_factor = numbers[3]
    touched[rows] |= ~clip_factor.isnan()


def _check_write_set(op: str, written: dict, read: dict) -> None:
    """What the fused ops check; a traced tensor has no address."""
    if not torch.compiler.is_compiling():
        from sbrrt_fast.kernels.write_set import check_write_set  # needs no Triton

        check_write_set(op, written, read)


def _copy(copies: Sequence[Tensor], index: int, source: Tensor, left_out: Tensor) -> None:
    if len(copies) and copies[index].numel():
        _put(copies[index], source.to(copies[index].dtype), left_out)


def _update_why_not(
    backend: Backend, params: Sequence[Tensor], grads: Sequence[Tensor], *args
) -> str | None:
    if other := [p for p in params if p.dtype != torch.float32]:
        return f"{dtype_name(other[0])} parameters run on the reference"
    return why_not_gradients(backend, grads)


def _rows_why_not(backend: Backend, param: Tensor, grad: Tensor, *args) -> str | None:
    reason = _update_why_not(backend, [param], [param])
    if reason is None and grad.dtype != torch.float32:
        return f"a {dtype_name(grad)} gradient of rows runs on the reference"
    return reason


_adamw = fused_op(
    "adamw_ema_",
    lambda backend, *args: backend.ops.adamw_ema_(*args),
    _update_why_not,
    adamw_ema_reference,
)
_rows = fused_op(
    "adamw_ema_rows_",
    lambda backend, *args: backend.ops.adamw_ema_rows_(*args),
    _rows_why_not,
    adamw_ema_rows_reference,
)


@torch.no_grad()
def adamw_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    learning_rate: Tensor,
    weight_decay: Sequence[float],
    clip_factor: Tensor,
    step: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    ema: Sequence[Tensor] = (),
    ema_beta: float = 1.0,
    low_precision: Sequence[Tensor] = (),
    ema_low_precision: Sequence[Tensor] = (),
    backend: str = "auto",
) -> None:
    """One optimiser step in place: what torch.optim.AdamW, a lerp and copies would leave.

    Args:
        params, exp_avg, exp_avg_sq: float32, contiguous, written; one entry per parameter.
        grads: float32 or bfloat16, each its own, only read. An entry without elements leaves its
            parameter and its moments, which may be without elements too, as they are.
        learning_rate: float32 or float64, one number or [number of params].
        weight_decay: one number per parameter.
        clip_factor: float32, one number that multiplies every gradient; NaN leaves the update
            out, so that nothing is written. See ``ops.gradient_norm``.
        step: int64 or float32, one number or [number of params]: this update's, from 1.
        betas, eps: AdamW's.
        ema: averages, float32; ema_beta: their momentum in this update.
        low_precision, ema_low_precision: bfloat16 copies of parameters and averages.
            These three lists may be empty; an entry without elements leaves its parameter out.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit its parameter; nothing
            has been written then.
        BackendError: the named backend cannot run these inputs.
    """
    _adamw(
        list(params), list(grads), list(exp_avg), list(exp_avg_sq), list(ema), list(low_precision),
        list(ema_low_precision), learning_rate, list(weight_decay), *betas, eps, clip_factor, step,
        ema_beta, backend=backend,
    )  # fmt: skip


@torch.no_grad()
def adamw_ema_rows_(
    param: Tensor,
    gradient: RowGradient,
    touched: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    learning_rate: Tensor,
    weight_decay: float,
    clip_factor: Tensor,
    step: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    ema: Tensor | None = None,
    ema_beta: float = 1.0,
    backend: str = "auto",
) -> None:
    """``adamw_ema_`` of one table of which a few rows have a gradient: all rows are updated.

    Rows that never had one only decay, so their moments, which are zero, are not read.

    Args:
        param, exp_avg, exp_avg_sq, ema: float32 [num_rows, width], contiguous, written.
        gradient: of some rows.
        touched: bool [num_rows], written: whether a row's moments are not all zero.
        learning_rate: float32 or float64, one number. The others are as in ``adamw_ema_``.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; nothing has been
            written then.
        BackendError: the named backend cannot run these inputs.
    """
    average = param.new_empty(0) if ema is None else ema
    _rows(
        param, gradient.values, gradient.rows, touched, exp_avg, exp_avg_sq, average, learning_rate,
        weight_decay, *betas, eps, clip_factor, step, ema_beta, backend=backend,
    )  # fmt: skip


def native_reason(params: Sequence[Tensor], backend: str = "auto") -> str | None:
    """Why no fused op of this backend can update these parameters, or None."""
    choice = _adamw.explain(backend, params, params)
    return choice.reasons_text if choice.backend in (None, "reference") else None


OPS = (_adamw, _rows)
