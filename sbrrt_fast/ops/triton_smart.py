"""The Triton implementations of SMART's ops and of the optimiser; mathematics in their modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbrrt_fast.ops import triton_ops
from sbrrt_fast.ops.dispatch import Implementation
from sbrrt_fast.ops.triton_autograd import differentiable
from sbrrt_fast.ops.triton_rows import too_wide

MAX_CLASSES = 4096  # of kernels.symmetric_kl, which needs Triton
_ops = triton_ops.ops

triton_ops.define(
    "symmetric_kl_forward(Tensor logits, Tensor delta) -> Tensor",
    "symmetric_kl",
    "forward",
    lambda logits, delta: logits.new_empty(logits.shape[0], dtype=torch.float32),
)
triton_ops.define(
    "symmetric_kl_backward(Tensor grad, Tensor logits, Tensor delta) -> (Tensor, Tensor)",
    "symmetric_kl",
    "backward",
    lambda grad, logits, delta: (logits.new_empty(logits.shape), delta.new_empty(delta.shape)),
)
triton_ops.define(
    "symmetric_kl_fisher(Tensor logits, Tensor tangent) -> Tensor",
    "symmetric_kl",
    "fisher",
    lambda logits, tangent: logits.new_empty(logits.shape, dtype=torch.float32),
)


def _kl_backward(grad, inputs, kept, needs):
    return _ops.symmetric_kl_backward(grad, *inputs)


def _kl_jvp(tangents, inputs, kept):
    """The gradient times the tangents."""
    ones = torch.ones(inputs[0].shape[0], device=inputs[0].device)
    gradients = _ops.symmetric_kl_backward(ones, *(x.float() for x in inputs))
    products = [g * t for g, t in zip(gradients, tangents, strict=True) if t is not None]
    return sum(products).sum(dim=-1)


def _kl_why_not(logits: Tensor, other: Tensor) -> str | None:
    inputs = {"logits": logits, "the other input": other}
    if reason := triton_ops.triton_reason(differentiable=inputs, constant={}):
        return reason
    if logits.shape != other.shape:
        return f"shapes {tuple(logits.shape)} and {tuple(other.shape)} run on the reference"
    if logits.shape[-1] > MAX_CLASSES:
        return f"{logits.shape[-1]} classes are above {MAX_CLASSES}"
    return None


def symmetric_kl(higher: Callable) -> Implementation:
    """higher: (grad, logits, delta) -> both gradients with their graph, by the reference."""
    run_rows = differentiable(
        "symmetric_kl_forward",
        _kl_backward,
        _kl_jvp,
        higher=lambda grad, inputs: higher(grad, *inputs),
    )

    def run(logits: Tensor, delta: Tensor) -> Tensor:
        rows = (x.reshape(-1, logits.shape[-1]) for x in (logits, delta))
        return run_rows(*rows).view(logits.shape[:-1])

    return Implementation("triton", run, _kl_why_not, triton_ops.missing)


def _fisher(logits: Tensor, tangent: Tensor) -> Tensor:
    rows = (x.reshape(-1, logits.shape[-1]) for x in (logits, tangent))
    return _ops.symmetric_kl_fisher(*rows).view(logits.shape)


def _fisher_why_not(logits: Tensor, tangent: Tensor) -> str | None:
    if torch.is_grad_enabled() and (logits.requires_grad or tangent.requires_grad):
        return "the product's own derivative runs on the reference"
    return _kl_why_not(logits, tangent)


SYMMETRIC_KL_FISHER = Implementation("triton", _fisher, _fisher_why_not, triton_ops.missing)


triton_ops.define(
    "smart_noise(Tensor offsets, SymInt width, Tensor rng, int site) -> Tensor",
    "smart_noise",
    "smart_noise",
    lambda offsets, width, rng, site: offsets.new_empty(
        (offsets.shape[0], width), dtype=torch.float32
    ),
)
SMART_NOISE = Implementation(
    "triton",
    lambda *args: _ops.smart_noise(*args),
    lambda offsets, *_: triton_ops.device_reason("offsets", offsets),
    triton_ops.missing,
)


triton_ops.define(
    "smart_ascend(Tensor delta, Tensor gradient, Tensor mask, Tensor sequence, "
    "SymInt num_sequences, float step_size, bool normalize_gradient, str projection, "
    "float radius, str norm, str level) -> Tensor",
    "smart_ascend",
    "smart_ascend",
    lambda delta, *_: delta.new_empty(delta.shape),
)


def _ascend(
    delta: Tensor, gradient: Tensor, mask: Tensor, sequence: Tensor, num_sequences: int, *,
    step_size: float, normalize_gradient: bool, projection: str, radius: float, norm: str,
    level: str,
) -> Tensor:  # fmt: skip
    return _ops.smart_ascend(
        delta, gradient, mask, sequence, num_sequences, step_size, normalize_gradient, projection,
        radius, norm, level,
    )  # fmt: skip


def _ascend_why_not(delta: Tensor, gradient: Tensor, *args, **options) -> str | None:
    reason = triton_ops.triton_reason(
        differentiable={}, constant={"delta": delta, "gradient": gradient}
    )
    return reason or too_wide(delta.shape[-1])


SMART_ASCEND = Implementation("triton", _ascend, _ascend_why_not, triton_ops.missing)


triton_ops.define(
    "adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, "
    "Tensor(c!)[] exp_avg_sq, Tensor(d!)[] ema, Tensor(e!)[] low_precision, "
    "Tensor(f!)[] ema_low_precision, Tensor learning_rate, float[] weight_decay, float beta1, "
    "float beta2, float eps, Tensor clip_factor, Tensor step, float ema_beta) -> ()",
    "adamw_ema",
    "adamw_ema_",
    lambda *args: None,
)
triton_ops.define(
    "adamw_ema_rows_(Tensor(a!) param, Tensor grad, Tensor rows, Tensor(b!) touched, "
    "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) ema, Tensor learning_rate, "
    "float weight_decay, float beta1, float beta2, float eps, Tensor clip_factor, "
    "Tensor step, float ema_beta) -> ()",
    "adamw_rows",
    "adamw_ema_rows_",
    lambda *args: None,
)
triton_ops.define(
    "gradient_norm(Tensor[] grads) -> Tensor",
    "adamw_ema",
    "gradient_norm",
    lambda grads: grads[0].new_empty((), dtype=torch.float32),
    takes_nothing=True,
)


def _norm_why_not(grads: Sequence[Tensor]) -> str | None:
    if len({g.dtype for g in grads}) > 1:
        return "gradients of several dtypes run on the reference"
    gradients = {f"gradient {i}": g for i, g in enumerate(grads)}
    return triton_ops.triton_reason(differentiable={}, constant=gradients)


def adamw_why_not(params: Sequence[Tensor], grads: Sequence[Tensor], *args) -> str | None:
    """Why the Triton kernels cannot update these parameters, or None."""
    if other := {p.dtype for p in params} - {torch.float32}:
        return f"{str(other.pop())[6:]} parameters run on the reference"
    return _norm_why_not(grads)


def row_gradient_reason(grad: Tensor) -> str | None:
    """Why no kernel takes the gradient of some rows of a table, or None."""
    if grad.dtype == torch.float32:
        return None
    return f"a {str(grad.dtype)[6:]} gradient of rows runs on the reference"


ADAMW_EMA = Implementation(
    "triton", lambda *args: _ops.adamw_ema_(*args), adamw_why_not, triton_ops.missing
)
ADAMW_EMA_ROWS = Implementation(
    "triton",
    lambda *args: _ops.adamw_ema_rows_(*args),
    lambda param, grad, *args: adamw_why_not([param], [param]) or row_gradient_reason(grad),
    triton_ops.missing,
)
GRADIENT_NORM = Implementation(
    "triton", lambda grads: _ops.gradient_norm(grads), _norm_why_not, triton_ops.missing
)
