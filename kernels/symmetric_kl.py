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

from .checks import (
    check_floats,
    check_rows,
    check_statistics,
    check_written,
    check_written_rows,
    strided,
)
from .launch import launch
from .previous_kernel import await_previous
from .rows import store_rows
from .write_set import check_write_set, count_change

ROWS = 16  # examples of a program; a task's batch is one or two programs
MAX_CLASSES = 4096  # a tile of 65,536 float64 is as much as sixteen warps hold


def _blocks(num_classes: int) -> dict[str, int]:
    """ROWS, CLASSES and num_warps: a row of classes is a power of 2, four elements a thread."""
    classes = triton.next_power_of_2(num_classes)
    rows = max(1, min(ROWS, 4096 // classes))
    return {"ROWS": rows, "CLASSES": classes, "num_warps": min(max(rows * classes // 128, 1), 16)}


@triton.jit
def _tile(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """This program's rows [ROWS, 1], classes [1, CLASSES] and mask of both."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_class = tl.arange(0, CLASSES)[None, :]
    return o_row, o_class, (o_row < num_rows) & (o_class < num_classes)


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
def log_softmax(b_logits):
    """Over the classes, of which -inf leaves one out."""
    b_centred = b_logits - tl.max(b_logits, axis=1)[:, None]
    return b_centred - tl.log(tl.sum(tl.exp(b_centred), axis=1))[:, None]


@triton.jit
def _load_logits(p_logits, o, m):
    """Without a class that is beyond the last; rows beyond the last are 0."""
    m_row = tl.max(m.to(tl.int32), axis=1)[:, None] > 0
    return tl.where(m_row, _load_double(p_logits, o, m, float("-inf")), 0.0)


@triton.jit
def _compare(logits, delta, o_row, o_class, m, num_classes):
    """``compare`` of the program's rows; logits and delta are (pointer, stride)."""
    b_logits = _load_logits(logits[0], o_row * logits[1] + o_class, m)
    b_delta = _load_double(delta[0], o_row * delta[1] + o_class, m, 0.0)
    return compare(b_logits, b_delta, m, num_classes)


@triton.jit
def compare(b_logits, b_delta, m, num_classes):
    """q, the log-ratio c = log p - log q and p - q, float64 [ROWS, CLASSES]; 0 outside ``m``.

    Outside ``m`` logits are -inf, or 0 in a row without any, and deltas 0.
    """
    b_log_q = log_softmax(b_logits)
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
    b_diff = tl.where(tl.abs(b_ratio) <= 1.0, b_near, tl.exp(b_log_q + b_ratio) - b_q)
    return b_q, b_ratio, b_diff


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    p_logits,  # [num_rows, num_classes], rows logits_stride apart
    logits_stride,
    p_delta,  # [num_rows, num_classes], rows delta_stride apart
    delta_stride,
    p_out,  # float32 [num_rows]
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    o_row, o_class, m = _tile(num_rows, num_classes, ROWS, CLASSES)
    inputs = ((p_logits, logits_stride), (p_delta, delta_stride))
    _, b_ratio, b_diff = _compare(*inputs, o_row, o_class, m, num_classes)
    b_out = tl.sum(b_diff * b_ratio, axis=1, keep_dims=True)
    tl.store(p_out + o_row, b_out.to(tl.float32), mask=o_row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    p_grad,  # float32 [num_rows]
    p_logits,  # [num_rows, num_classes], rows logits_stride apart
    logits_stride,
    p_delta,  # [num_rows, num_classes], rows delta_stride apart
    delta_stride,
    p_dlogits,  # [num_rows, num_classes], rows dlogits_stride apart
    dlogits_stride,
    p_ddelta,  # [num_rows, num_classes], rows ddelta_stride apart
    ddelta_stride,
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    o_row, o_class, m = _tile(num_rows, num_classes, ROWS, CLASSES)
    inputs = ((p_logits, logits_stride), (p_delta, delta_stride))
    b_q, b_ratio, b_diff = _compare(*inputs, o_row, o_class, m, num_classes)
    b_p = b_q + b_diff
    b_centred = b_ratio - tl.sum(b_p * b_ratio, axis=1)[:, None]
    divergence = tl.sum(b_diff * b_ratio, axis=1)[:, None]
    grad = tl.load(p_grad + o_row, mask=o_row < num_rows, other=0.0).to(tl.float64)
    b_dlogits = grad * (b_diff * b_centred - b_q * divergence)
    b_ddelta = grad * (b_p * b_centred + b_diff)
    store_rows(p_dlogits, dlogits_stride, o_row, o_class, m, b_dlogits.to(tl.float32))
    store_rows(p_ddelta, ddelta_stride, o_row, o_class, m, b_ddelta.to(tl.float32))


@triton.jit(do_not_specialize=["num_rows"])
def _fisher_kernel(
    p_logits,  # [num_rows, num_classes], rows logits_stride apart
    logits_stride,
    p_tangent,  # [num_rows, num_classes], rows tangent_stride apart
    tangent_stride,
    p_out,  # float32 [num_rows, num_classes], rows out_stride apart
    out_stride,
    num_rows,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    o_row, o_class, m = _tile(num_rows, num_classes, ROWS, CLASSES)
    b_tangent = _load_double(p_tangent, o_row * tangent_stride + o_class, m, 0.0)
    b_q = tl.exp(log_softmax(_load_logits(p_logits, o_row * logits_stride + o_class, m)))
    b_out = 2.0 * b_q * (b_tangent - tl.sum(b_q * b_tangent, axis=1)[:, None])
    store_rows(p_out, out_stride, o_row, o_class, m, b_out.to(tl.float32))


def forward_into(logits: Tensor, delta: Tensor, out: Tensor) -> None:
    """The divergence of each example, float32 [num_rows]; logits and delta [num_rows, classes]."""
    op, inputs = "symmetric_kl_forward", {"logits": logits, "delta": delta}
    num_rows, num_classes = _check(op, **inputs)
    check_written(op, "out", out, torch.float32, (num_rows,), logits.device)
    check_write_set(op, {"out": out}, inputs)
    _run(_forward_kernel, *strided(logits), *strided(delta), out, num_rows, num_classes)
    count_change({"out": out})


def backward_into(
    grad: Tensor, logits: Tensor, delta: Tensor, dlogits: Tensor, ddelta: Tensor
) -> None:
    """The gradients of logits and delta, of their dtypes; grad is float32 [num_rows]."""
    op, inputs = "symmetric_kl_backward", {"logits": logits, "delta": delta}
    shape, device = _check(op, **inputs), logits.device
    check_statistics(op, device, shape[0], grad=grad)
    check_written_rows(op, "dlogits", dlogits, logits.dtype, shape, device)
    check_written_rows(op, "ddelta", ddelta, delta.dtype, shape, device)
    written = {"dlogits": dlogits, "ddelta": ddelta}
    check_write_set(op, written, {"grad": grad, **inputs})
    matrices = [x for matrix in (logits, delta, dlogits, ddelta) for x in strided(matrix)]
    _run(_backward_kernel, grad.contiguous(), *matrices, *shape)
    count_change(written)


def fisher_into(logits: Tensor, tangent: Tensor, out: Tensor) -> None:
    """2 (diag q - q q^T) tangent of each example, float32 [num_rows, classes]."""
    op, inputs = "symmetric_kl_fisher", {"logits": logits, "tangent": tangent}
    shape = _check(op, **inputs)
    check_written_rows(op, "out", out, torch.float32, shape, logits.device)
    check_write_set(op, {"out": out}, inputs)
    _run(_fisher_kernel, *strided(logits), *strided(tangent), *strided(out), *shape)
    count_change({"out": out})


def _check(op: str, logits: Tensor, **other: Tensor) -> tuple[int, int]:
    """(examples, classes)"""
    shape = check_rows(op, "logits", logits)
    if shape[1] > MAX_CLASSES:
        raise ValueError(f"{op}: logits have {shape[1]} classes, above {MAX_CLASSES}")
    check_floats(op, logits.device, **{name: (x, shape) for name, x in other.items()})
    return shape


def _run(kernel, *arguments) -> None:
    *_, num_rows, num_classes = arguments
    tile = _blocks(num_classes)
    launch(kernel, (triton.cdiv(num_rows, tile["ROWS"]),), *arguments, **tile)


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for num_classes in (2, 5):
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.empty(8, num_classes, dtype=dtype, device="meta")
            grad = torch.empty(8, dtype=torch.float32, device="meta")
            name = f"{num_classes} classes {str(dtype)[6:]}"
            yield f"forward {name}", partial(forward_into, logits, logits, grad)
            yield f"backward {name}", partial(backward_into, grad, *[logits] * 4)
            yield f"fisher {name}", partial(fisher_into, logits, logits, logits.float())
