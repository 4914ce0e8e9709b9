"""One ascent step of SMART: norms of groups, move, projection; docs/math/smart_ascend.md.

Everything between the loads and the store is float64: squares of gradients of 1e-40 and of 1e37 are
within its range, so no scaling is needed, and there are some ten operations per element.

A group is a token, which one program holds, or a sequence. For sequences each token's size (largest
entry or sum of squares) goes to memory first, and every token then combines those of its sequence,
in order: 650 sizes are 5 KB in L2, so three launches need neither a sort nor an atomic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    check_floats,
    check_indices,
    check_rows,
    check_tensor,
    check_written_rows,
    dense_rows,
)
from .launch import launch
from .launch_table import TABLE
from .previous_kernel import await_previous
from .rows import load_float, row_block
from .write_set import check_write_set, count_change

TOKENS = 1024  # sizes combined at a time; a usual batch has about 650 tokens
_varying = ["num_tokens"]


@triton.jit
def _num_moved(p_mask, i_token, width):
    """How many of a token's features may move: all or none."""
    return tl.where(tl.load(p_mask + i_token) != 0, width, 0)


@triton.jit
def _load_row(p_row, o, m):
    return load_float(p_row, o, m).to(tl.float64)


@triton.jit
def _size(b_row, IS_SUP: tl.constexpr):
    """A row's largest entry, or its sum of squares."""
    if IS_SUP:
        return tl.max(tl.abs(b_row), axis=0)
    else:
        return tl.sum(b_row * b_row, axis=0)


@triton.jit
def _norm(size, IS_SUP: tl.constexpr):
    if IS_SUP:
        return size
    else:
        return tl.sqrt(size)


@triton.jit
def _group_size(
    p_sizes, p_sequence, i_token, num_tokens, IS_SUP: tl.constexpr, TOKENS: tl.constexpr
):
    """The sizes of all tokens of this token's sequence, combined."""
    i_sequence = tl.load(p_sequence + i_token)
    b_total = tl.zeros((TOKENS,), tl.float64)
    for i_first in range(0, num_tokens, TOKENS):
        o = i_first + tl.arange(0, TOKENS)
        m = o < num_tokens
        m = m & (tl.load(p_sequence + o, mask=m, other=0) == i_sequence)
        b_size = tl.load(p_sizes + o, mask=m, other=0.0)
        b_total = tl.maximum(b_total, b_size) if IS_SUP else b_total + b_size
    if IS_SUP:
        return tl.max(b_total, axis=0)
    else:
        return tl.sum(b_total, axis=0)


@triton.jit
def _moved(b_delta, b_gradient, norm, step_size, IS_INFINITE: tl.constexpr, DIVIDES: tl.constexpr):
    """delta + eta gradient; the gradient's direction alone for an infinite eta."""
    if DIVIDES:
        b_gradient = b_gradient / tl.where(norm > 0.0, norm, 1.0)
    if IS_INFINITE:
        return tl.where(norm > 0.0, b_gradient, b_delta)
    else:
        return b_delta + step_size * b_gradient


@triton.jit
def _projected(b_moved, norm, radius, PROJECTION: tl.constexpr):
    if PROJECTION == "clamp":
        return tl.minimum(tl.maximum(b_moved, -radius), radius)
    elif PROJECTION == "sign":
        return tl.where(b_moved > 0.0, radius, tl.where(b_moved < 0.0, -radius, 0.0))
    else:
        limit = radius if PROJECTION == "limit" else 0.0
        return b_moved * tl.where(norm > limit, radius / tl.where(norm > 0.0, norm, 1.0), 1.0)


@triton.jit
def _token_kernel(
    p_delta,  # [num_tokens, width], rows delta_stride apart
    p_gradient,  # [num_tokens, width], rows gradient_stride apart
    p_mask,  # bool [num_tokens]
    p_out,  # [num_tokens, width], rows out_stride apart
    delta_stride,
    gradient_stride,
    out_stride,
    width,
    step_size,
    radius,
    IS_SUP: tl.constexpr,
    IS_INFINITE: tl.constexpr,
    DIVIDES: tl.constexpr,
    PROJECTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_token = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < _num_moved(p_mask, i_token, width)
    b_gradient = _load_row(p_gradient + i_token * gradient_stride, o, m)
    b_delta = _load_row(p_delta + i_token * delta_stride, o, m)
    norm = _norm(_size(b_gradient, IS_SUP), IS_SUP)
    b_moved = _moved(b_delta, b_gradient, norm, step_size, IS_INFINITE, DIVIDES)
    norm = _norm(_size(b_moved, IS_SUP), IS_SUP)
    b_out = _projected(b_moved, norm, radius, PROJECTION)
    tl.store(p_out + i_token * out_stride + o, b_out.to(tl.float32), mask=o < width)


@triton.jit
def _gradient_size_kernel(
    p_gradient,  # [num_tokens, width], rows gradient_stride apart
    p_mask,  # bool [num_tokens]
    p_sizes,  # float64 [num_tokens], 0 where masked
    gradient_stride,
    width,
    IS_SUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_token = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < _num_moved(p_mask, i_token, width)
    b_gradient = _load_row(p_gradient + i_token * gradient_stride, o, m)
    tl.store(p_sizes + i_token, _size(b_gradient, IS_SUP))


@triton.jit(do_not_specialize=_varying)
def _sequence_kernel(
    p_delta,  # [num_tokens, width], rows delta_stride apart
    p_gradient,  # [num_tokens, width], rows gradient_stride apart
    p_mask,  # bool [num_tokens]
    p_sequence,  # int64 [num_tokens]
    p_gradient_sizes,  # float64 [num_tokens]
    p_moved_sizes,  # float64 [num_tokens], written if MEASURES, else read
    p_out,  # [num_tokens, width], rows out_stride apart, written if not MEASURES
    delta_stride,
    gradient_stride,
    out_stride,
    num_tokens,
    width,
    step_size,
    radius,
    IS_SUP: tl.constexpr,
    IS_INFINITE: tl.constexpr,
    DIVIDES: tl.constexpr,
    PROJECTION: tl.constexpr,
    MEASURES: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Moves a token; MEASURES its size, or else projects it by the size of its sequence."""
    await_previous()
    i_token = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < _num_moved(p_mask, i_token, width)
    b_gradient = _load_row(p_gradient + i_token * gradient_stride, o, m)
    b_delta = _load_row(p_delta + i_token * delta_stride, o, m)
    norm = 1.0
    if DIVIDES:
        size = _group_size(p_gradient_sizes, p_sequence, i_token, num_tokens, IS_SUP, TOKENS)
        norm = _norm(size, IS_SUP)
    b_moved = _moved(b_delta, b_gradient, norm, step_size, IS_INFINITE, DIVIDES)
    if MEASURES:
        tl.store(p_moved_sizes + i_token, _size(b_moved, IS_SUP))
    else:
        if PROJECTION == "limit" or PROJECTION == "scale":
            size = _group_size(p_moved_sizes, p_sequence, i_token, num_tokens, IS_SUP, TOKENS)
            norm = _norm(size, IS_SUP)
        b_out = _projected(b_moved, norm, radius, PROJECTION)
        tl.store(p_out + i_token * out_stride + o, b_out.to(tl.float32), mask=o < width)


def smart_ascend_into(
    delta: Tensor, gradient: Tensor, mask: Tensor, sequence: Tensor, num_sequences: int,
    step_size: float, normalize_gradient: bool, projection: str, radius: float, norm: str,
    level: str, out: Tensor,
) -> None:  # fmt: skip
    """The perturbation after one step, [num_tokens, width] of delta's dtype, 0 where masked.

    Sequences may have any numbers; num_sequences is what the other backends need.
    """
    op, (num_tokens, width) = "smart_ascend", _check(delta, gradient, mask, sequence)
    options = _options(step_size, normalize_gradient, projection, radius, norm, level)
    check_written_rows(op, "out", out, delta.dtype, (num_tokens, width), delta.device)
    read = {"delta": delta, "gradient": gradient, "mask": mask, "sequence": sequence}
    check_write_set(op, {"out": out}, read)
    delta, gradient, mask = dense_rows(delta), dense_rows(gradient), mask.contiguous()
    step_size = 1.0 if math.isinf(step_size) else step_size
    numbers = width, step_size, radius
    if level == "token":
        strides = (x.stride(0) for x in (delta, gradient, out))
        arguments = delta, gradient, mask, out, *strides, *numbers
        launch(_token_kernel, (num_tokens,), *arguments, **options, **_tile(width))
    else:
        _ascend_sequences(delta, gradient, mask, sequence.contiguous(), out, numbers, options)
    count_change({"out": out})


def _ascend_sequences(
    delta: Tensor, gradient: Tensor, mask: Tensor, sequence: Tensor, out: Tensor,
    numbers: tuple[int, float, float], options: dict[str, object],
) -> None:  # fmt: skip
    """Sizes of the gradient's groups, sizes of the moved groups, the move itself, as needed.

    numbers: width, step size, radius.
    """
    (num_tokens, width), tile = delta.shape, _tile(delta.shape[1])
    sizes = [torch.empty(num_tokens, dtype=torch.float64, device=delta.device) for _ in range(2)]
    if options["DIVIDES"]:
        arguments = gradient, mask, sizes[0], gradient.stride(0), width
        is_sup = options["IS_SUP"]
        launch(_gradient_size_kernel, (num_tokens,), *arguments, IS_SUP=is_sup, **tile)
    strides = (x.stride(0) for x in (delta, gradient, out))
    arguments = delta, gradient, mask, sequence, *sizes, out, *strides, num_tokens, *numbers
    needs_size = options["PROJECTION"] in ("limit", "scale")
    for measures in (True, False) if needs_size else (False,):
        constants = {**options, "MEASURES": measures, "TOKENS": TOKENS, **tile}
        launch(_sequence_kernel, (num_tokens,), *arguments, **constants)


def _tile(width: int) -> dict[str, int]:
    """A row per program: BLOCK, and num_warps, of eight elements a thread where no table says."""
    block = row_block(width)
    if known := TABLE.get(f"smart_ascend {block}"):
        return {"BLOCK": block, **known.constants}
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def _check(delta: Tensor, gradient: Tensor, mask: Tensor, sequence: Tensor) -> tuple[int, int]:
    """(tokens, width)."""
    op = "smart_ascend"
    num_tokens, width = check_rows(op, "delta", delta)
    check_floats(op, delta.device, gradient=(gradient, (num_tokens, width)))
    check_tensor(op, "mask", mask, torch.bool, (num_tokens,), delta.device)
    check_indices(op, delta.device, num_tokens, sequence=sequence)
    return num_tokens, width


def _options(
    step_size: float, normalize_gradient: bool, projection: str, radius: float, norm: str,
    level: str,
) -> dict[str, object]:  # fmt: skip
    """The kernels' constants, after checks."""
    if not step_size > 0:
        raise ValueError(f"smart_ascend: step_size must be > 0, got {step_size}")
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"smart_ascend: radius must be > 0 and finite, got {radius}")
    for name, value, choices in (
        ("projection", projection, ("ball", "normalize")),
        ("norm", norm, ("inf", "2")),
        ("level", level, ("token", "sequence")),
    ):
        if value not in choices:
            wanted = " or ".join(map(repr, choices))
            raise ValueError(f"smart_ascend: {name} must be {wanted}, got {value!r}")
    is_infinite, is_sup = math.isinf(step_size), norm == "inf"
    kind = "scale"
    if projection == "ball" and is_sup:
        kind = "sign" if is_infinite else "clamp"
    elif projection == "ball" and not is_infinite:
        kind = "limit"
    return {
        "IS_SUP": is_sup,
        "IS_INFINITE": is_infinite,
        "DIVIDES": is_infinite or normalize_gradient,
        "PROJECTION": kind,
    }


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    mask = torch.empty(8, dtype=torch.bool, device="meta")
    sequence = torch.empty(8, dtype=torch.int64, device="meta")
    settings = {
        "clamp": (1e-3, True, "ball", 1e-5, "inf"),
        "limit": (1e-3, True, "ball", 1.0, "2"),
        "direction": (math.inf, True, "normalize", 1.0, "2"),
    }
    for width, level, name in itertools.product((384, 768), ("token", "sequence"), settings):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(8, width, dtype=dtype, device="meta")
            arguments = (x, x, mask, sequence, 8, *settings[name], level, x)
            yield f"{name} {level} {width} {str(dtype)[6:]}", partial(smart_ascend_into, *arguments)
