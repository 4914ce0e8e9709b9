"""Symmetric KL in the delta form, its gradients and its Fisher product; docs/math/symmetric_kl.md.

A batch has some dozens of logits, so rows are computed in float64: rounding of the inputs and of
the result is all that remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .row_checks import check_floats, check_rows, check_statistics

ROWS = 16  # examples of a program; a task's batch is one or two programs
MAX_CLASSES = 4096  # a tile of 65,536 float64 is as much as sixteen warps hold


def _tile(num_classes: int) -> dict[str, int]:
    """ROWS, CLASSES and num_warps: a row of classes is a power of 2, four elements a thread."""
    classes = triton.next_power_of_2(num_classes)
    rows = max(1, min(ROWS, 4096 // classes))
    return {"ROWS": rows, "CLASSES": classes, "num_warps": min(max(rows * classes // 128, 1), 16)}


@triton.jit
def _places(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """This program's rows [ROWS], places [ROWS, CLASSES] in a dense tensor, and their mask."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_class = tl.arange(0, CLASSES)[None, :]
    m = (o_row < num_rows)[:, None] & (o_class < num_classes)
    return o_row, o_row[:, None] * num_classes + o_class, m


@triton.jit
def _load_double(p, o, m, other):
    """float32 stands between, as the interpreter has no other way from bfloat16."""
    return tl.load(p + o, mask=m, other=other).to(tl.float32).to(tl.float64)


@triton.jit
def _expm1(x):
    """exp(x) - 1 of |x| <= 1 to a few ulp (W. Kahan: the rounding of u cancels)."""
    u = tl.exp(x)
    return tl.where(u == 1.0, x, (u - 1.0) * x / tl.where(u == 1.0, 1.0, tl.log(u)))


@triton.jit
def _log1p(x):
    """log(1 + x) to a few ulp, for the same reason."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def _log_softmax(b_logits):
    """Over the classes, of which -inf leaves one out."""
    b_centred = b_logits - tl.max(b_logits, axis=1)[:, None]
    return b_centred - tl.log(tl.sum(tl.exp(b_centred), axis=1))[:, None]


@triton.jit
def _compare(p_logits, p_delta, o, m, num_classes):
    """q, the log-ratio c = log p - log q and p - q, float64 [ROWS, CLASSES]; 0 outside ``m``."""
    m_row = tl.max(m.to(tl.int32), axis=1)[:, None] > 0
    b_logits = tl.where(m_row, _load_double(p_logits, o, m, float("-inf")), 0.0)
    b_delta = _load_double(p_delta, o, m, 0.0)
    b_log_q = _log_softmax(b_logits)
    b_q = tl.exp(b_log_q)
    b_moved = b_log_q + b_delta
    largest = tl.max(b_moved, axis=1)
    shift = largest + tl.log(tl.sum(tl.exp(b_moved - largest[:, None]), axis=1))
    near = _log1p(tl.sum(b_q * _expm1(b_delta), axis=1))
    is_small = tl.max(tl.abs(b_delta), axis=1) <= 1.0
    shift = tl.where(is_small, near, shift)
    shift = tl.where(num_classes == 1, tl.sum(b_delta, axis=1), shift)  # nothing to diverge
    b_ratio = tl.where(m, b_delta - shift[:, None], 0.0)
    b_near = b_q * _expm1(b_ratio)
    b_change = tl.where(tl.abs(b_ratio) <= 1.0, b_near, tl.exp(b_log_q + b_ratio) - b_q)
    return b_q, b_ratio, b_change


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    p_logits,  # [num_rows, num_classes]
    p_delta,  # [num_rows, num_classes]
    p_out,  # float32 [num_rows]
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    o_row, o, m = _places(num_rows, num_classes, ROWS, CLASSES)
    _, b_ratio, b_change = _compare(p_logits, p_delta, o, m, num_classes)
    b_out = tl.sum(b_change * b_ratio, axis=1)
    tl.store(p_out + o_row, b_out.to(tl.float32), mask=o_row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    p_grad,  # float32 [num_rows]
    p_logits,  # [num_rows, num_classes]
    p_delta,  # [num_rows, num_classes]
    p_dlogits,  # [num_rows, num_classes]
    p_ddelta,  # [num_rows, num_classes]
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    o_row, o, m = _places(num_rows, num_classes, ROWS, CLASSES)
    b_q, b_ratio, b_change = _compare(p_logits, p_delta, o, m, num_classes)
    b_p = b_q + b_change
    b_centred = b_ratio - tl.sum(b_p * b_ratio, axis=1)[:, None]
    divergence = tl.sum(b_change * b_ratio, axis=1)[:, None]
    grad = tl.load(p_grad + o_row, mask=o_row < num_rows, other=0.0).to(tl.float64)[:, None]
    b_dlogits = grad * (b_change * b_centred - b_q * divergence)
    b_ddelta = grad * (b_p * b_centred + b_change)
    tl.store(p_dlogits + o, b_dlogits.to(tl.float32), mask=m)
    tl.store(p_ddelta + o, b_ddelta.to(tl.float32), mask=m)


@triton.jit(do_not_specialize=["num_rows"])
def _fisher_kernel(
    p_logits,  # [num_rows, num_classes]
    p_tangent,  # [num_rows, num_classes]
    p_out,  # float32 [num_rows, num_classes]
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    o_row, o, m = _places(num_rows, num_classes, ROWS, CLASSES)
    m_row = (o_row < num_rows)[:, None]
    b_logits = tl.where(m_row, _load_double(p_logits, o, m, float("-inf")), 0.0)
    b_tangent = _load_double(p_tangent, o, m, 0.0)
    b_q = tl.exp(_log_softmax(b_logits))
    b_out = 2.0 * b_q * (b_tangent - tl.sum(b_q * b_tangent, axis=1)[:, None])
    tl.store(p_out + o, b_out.to(tl.float32), mask=m)


def forward(logits: Tensor, delta: Tensor) -> Tensor:
    """The divergence of each example, float32 [num_rows]; logits and delta [num_rows, classes]."""
    num_rows, num_classes = _check("symmetric_kl_forward", logits, delta=delta)
    out = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    _run(_forward_kernel, logits.contiguous(), delta.contiguous(), out, num_rows, num_classes)
    return out


def backward(grad: Tensor, logits: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(dlogits, ddelta) of their arguments' dtypes; grad is float32 [num_rows]."""
    op = "symmetric_kl_backward"
    num_rows, num_classes = _check(op, logits, delta=delta)
    check_statistics(op, logits.device, num_rows, grad=grad)
    inputs = [x.contiguous() for x in (grad, logits, delta)]
    out = [torch.empty(logits.shape, dtype=x.dtype, device=x.device) for x in (logits, delta)]
    _run(_backward_kernel, *inputs, *out, num_rows, num_classes)
    return out[0], out[1]


def fisher(logits: Tensor, tangent: Tensor) -> Tensor:
    """2 (diag q - q q^T) tangent of each example, float32 [num_rows, classes]."""
    num_rows, num_classes = _check("symmetric_kl_fisher", logits, tangent=tangent)
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _run(_fisher_kernel, logits.contiguous(), tangent.contiguous(), out, num_rows, num_classes)
    return out


def _check(op: str, logits: Tensor, **other: Tensor) -> tuple[int, int]:
    shape = check_rows(op, "logits", logits)
    if shape[1] > MAX_CLASSES:
        raise ValueError(f"{op}: logits have {shape[1]} classes, above {MAX_CLASSES}")
    check_floats(op, logits.device, **{name: (x, shape) for name, x in other.items()})
    return shape


def _run(kernel, *arguments) -> None:
    *_, num_rows, num_classes = arguments
    tile = _tile(num_classes)
    launch(kernel, (triton.cdiv(num_rows, tile["ROWS"]),), *arguments, **tile)


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for num_classes in (2, 5):
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.empty(8, num_classes, dtype=dtype, device="meta")
            grad = torch.empty(8, dtype=torch.float32, device="meta")
            name = f"{num_classes} classes {str(dtype)[6:]}"
            yield f"forward {name}", partial(forward, logits, logits)
            yield f"backward {name}", partial(backward, grad, logits, logits)
            yield f"fisher {name}", partial(fisher, logits, logits)
