"""AdamW, the teacher's average and low-precision copies over all tensors: docs/math/adamw_ema.md.

Tensors whose gradients have one dtype share a launch; so do those without a gradient."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adamw_checks import LISTS, OP, SCALARS, check_lists, check_numbers
from .launch import launch
from .launch_table import TABLE
from .memory import extent_of
from .previous_kernel import await_previous
from .tensor_table import (
    TRITON_TYPES,
    addresses,
    aligned,
    device_table,
    load_piece,
    load_tile,
    pieces,
    store_tile,
    tensor_at,
)
from .write_set import Span, check_apart, check_autograd, count_change

# A program updates a piece, a few tiles, which share the float64 arithmetic of the corrections.
UPDATE_PIECE = 8192


@triton.jit
def corrections(p_constants, p_rate, p_step, i_tensor, num_tensors):
    """float32 (1 - rate * decay, rate / (1 - beta1^step), 1 / sqrt(1 - beta2^step)) of a tensor.

    p_rate, p_step: its own; i_tensor: its place among p_constants.
    """
    step, rate = tl.load(p_step).to(tl.float64), tl.load(p_rate).to(tl.float64)
    decay = tl.load(p_constants + i_tensor)
    correction1 = 1.0 - tl.exp(step * tl.load(p_constants + num_tensors))
    correction2 = 1.0 - tl.exp(step * tl.load(p_constants + num_tensors + 1))
    root_scale = 1.0 / tl.sqrt(correction2)
    kept, step_size = 1.0 - rate * decay, rate / correction1
    return kept.to(tl.float32), step_size.to(tl.float32), root_scale.to(tl.float32)


@triton.jit
def lerp(b_from, b_to, weight, rest):
    """From one to the other; exact at both ends, as torch.lerp is. rest = 1 - weight."""
    near = b_from + weight * (b_to - b_from)
    return tl.where(weight < 0.5, near, b_to - rest * (b_to - b_from))


@triton.jit
def adamw_step(b_param, b_mean, b_square, b_grad, numbers, decays):
    """(parameter, its moments) after a step, of the gradient times the clip factor.

    numbers: ``corrections``; decays: 1 - beta1, 1 - beta2, beta2, eps.
    """
    b_mean += decays[0] * (b_grad - b_mean)
    b_square = decays[2] * b_square + decays[1] * b_grad * b_grad
    b_step = b_mean / (tl.sqrt(b_square) * numbers[2] + decays[3])
    return b_param * numbers[0] - numbers[1] * b_step, b_mean, b_square


@triton.jit
def _adamw_tile(state, numbers, clip, decays, o, i_end, WHOLE: tl.constexpr):
    """Updates elements ``o`` of a parameter and its moments; returns the new parameter.

    state: pointers to the parameter, its moments and its gradient.
    """
    p_param, p_mean, p_square, p_grad = state
    b_grad = load_tile(p_grad, o, i_end, WHOLE) * clip
    b_mean, b_square = load_tile(p_mean, o, i_end, WHOLE), load_tile(p_square, o, i_end, WHOLE)
    b_param = load_tile(p_param, o, i_end, WHOLE)
    b_param, b_mean, b_square = adamw_step(b_param, b_mean, b_square, b_grad, numbers, decays)
    store_tile(p_mean, o, i_end, b_mean, WHOLE)
    store_tile(p_square, o, i_end, b_square, WHOLE)
    store_tile(p_param, o, i_end, b_param, WHOLE)
    return b_param


@triton.jit
def _store_copy(p_address, o, i_end, b_value, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
    """Into the bfloat16 tensor whose address is there, if it is not 0."""
    if tl.load(p_address) != 0:
        store_tile(tensor_at(p_address, tl.bfloat16, ALIGNED), o, i_end, b_value, WHOLE)


@triton.jit
def _average_tile(
    p_address,
    p_copy_address,
    average,
    b_param,
    o,
    i_end,
    HAS_COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Moves the average whose address is there, if it is not 0; average: 1 - beta, beta."""
    if tl.load(p_address) != 0:
        p_ema = tensor_at(p_address, tl.float32, ALIGNED)
        b_ema = lerp(load_tile(p_ema, o, i_end, WHOLE), b_param, average[0], average[1])
        store_tile(p_ema, o, i_end, b_ema, WHOLE)
        if HAS_COPIES:
            _store_copy(p_copy_address, o, i_end, b_ema, ALIGNED, WHOLE)


@triton.jit
def _update_tile(
    state,
    others,
    numbers,
    o,
    i_end,
    HAS_GRAD: tl.constexpr,
    HAS_EMA: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Elements ``o`` of one tensor; others: places of the addresses of average and both copies,
    numbers: corrections, clip factor, decays of the moments and weights of the average."""
    if HAS_GRAD:
        b_param = _adamw_tile(state, numbers[0], numbers[1], numbers[2], o, i_end, WHOLE)
        if HAS_COPIES:
            _store_copy(others[1], o, i_end, b_param, ALIGNED, WHOLE)
    else:
        b_param = load_tile(state[0], o, i_end, WHOLE)
    if HAS_EMA:
        place = (others[0], others[2], numbers[3])
        _average_tile(*place, b_param, o, i_end, HAS_COPIES, ALIGNED, WHOLE)


@triton.jit(do_not_specialize=["num_tensors", "rate_stride", "step_stride"])
def _update_kernel(
    p_addresses,  # int64 [7, num_tensors], of the tensors of each list of LISTS
    p_pieces,  # int64 [num_pieces, 3]
    p_constants,  # float64 [num_tensors + 2]: weight decays, log beta1, log beta2
    p_rates,  # float32 or float64, rate_stride apart
    p_clip,  # float32, one number
    p_step,  # int64 or float32, step_stride apart
    num_tensors,
    rate_stride,
    step_stride,
    new_mean,  # 1 - beta1
    new_square,  # 1 - beta2
    old_square,  # beta2
    eps,
    ema_new,  # 1 - ema_beta
    ema_old,  # ema_beta
    GRAD: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_EMA: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_tensor, i_begin, i_end = load_piece(p_pieces, tl.program_id(0).to(tl.int64))
    clip = tl.load(p_clip)
    i_end = tl.where(clip == clip, i_end, i_begin)  # NaN leaves the update out
    p_rate, p_step = p_rates + i_tensor * rate_stride, p_step + i_tensor * step_stride
    of_tensor = (1.0, 0.0, 1.0)  # without a gradient its step may be 0
    if HAS_GRAD:
        of_tensor = corrections(p_constants, p_rate, p_step, i_tensor, num_tensors)
    decays = (new_mean, new_square, old_square, eps)
    numbers = (of_tensor, clip, decays, (ema_new, ema_old))
    p_address = p_addresses + i_tensor
    p_param = tensor_at(p_address, tl.float32, ALIGNED)
    p_mean = tensor_at(p_address + num_tensors, tl.float32, ALIGNED)
    p_square = tensor_at(p_address + 2 * num_tensors, tl.float32, ALIGNED)
    p_grad = tensor_at(p_address + 3 * num_tensors, GRAD, ALIGNED)
    p_ema, p_copy = p_address + 4 * num_tensors, p_address + 5 * num_tensors
    tensors = ((p_param, p_mean, p_square, p_grad), (p_ema, p_copy, p_copy + num_tensors))
    for i_first in range(i_begin, i_end, BLOCK):
        o = i_first + tl.arange(0, BLOCK)
        if i_first + BLOCK <= i_end:
            _update_tile(*tensors, numbers, o, i_end, HAS_GRAD, HAS_EMA, HAS_COPIES, ALIGNED, True)
        else:
            _update_tile(*tensors, numbers, o, i_end, HAS_GRAD, HAS_EMA, HAS_COPIES, ALIGNED, False)


def adamw_ema_(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor], ema: Sequence[Tensor], low_precision: Sequence[Tensor],
    ema_low_precision: Sequence[Tensor], learning_rate: Tensor, weight_decay: Sequence[float],
    beta1: float, beta2: float, eps: float, clip_factor: Tensor, step: Tensor, ema_beta: float,
) -> None:  # fmt: skip
    """One step in place; the rate, the clip factor and the step are on the params' device."""
    values = params, exp_avg, exp_avg_sq, grads, ema, low_precision, ema_low_precision
    lists = dict(zip(LISTS, values, strict=True))
    check_lists(lists)
    if not params:
        return
    device, numbers = params[0].device, (learning_rate, clip_factor, step)
    betas = beta1, beta2
    check_numbers(OP, len(params), device, numbers, weight_decay, betas, eps, ema_beta)
    written = {name: xs for name, xs in lists.items() if LISTS[name][2]}
    scalars = dict(zip(SCALARS, numbers, strict=True))
    check_autograd(OP, written, {"grads": grads, **scalars})
    dense = {**lists, "grads": [g.contiguous() for g in grads]}
    places = tuple(addresses(x) if len(x) else (0,) * len(params) for x in dense.values())
    others = [(*extent_of(x), False, name) for name, x in scalars.items()]
    others += [
        (*extent_of(g), False, f"grads[{i}]")
        for i, g in enumerate(grads)
        if g is not dense["grads"][i]
    ]
    sizes, dtypes = tuple(p.numel() for p in params), tuple(g.dtype for g in grads)
    table = _address_table(places, sizes, dtypes, tuple(others), device)
    constants = constants_of(weight_decay, betas, device)
    strides = (x.stride(0) if x.dim() else 0 for x in (learning_rate, step))
    numbers = (*numbers, len(params), *strides, 1 - beta1, 1 - beta2, beta2, eps, 1 - ema_beta)
    has_copies = len(low_precision) + len(ema_low_precision) > 0
    for dtype, chosen in _by_kind(dense, sizes).items():
        parts = pieces(chosen, UPDATE_PIECE, device)
        launch(
            _update_kernel, (parts.shape[0],), table, parts, constants, *numbers, ema_beta,
            GRAD=TRITON_TYPES[dtype or torch.float32], HAS_GRAD=dtype is not None,
            HAS_EMA=len(ema) > 0, HAS_COPIES=has_copies, ALIGNED=aligned(places),
            **TABLE["adamw_ema_"].constants,
        )  # fmt: skip
    count_change(written)


def _by_kind(
    lists: Mapping[str, Sequence[Tensor]], sizes: tuple[int, ...]
) -> dict[torch.dtype | None, tuple[int, ...]]:
    """The parameters' sizes by the dtype of their gradients, with 0 for all others; None has those
    of which the average alone moves.
    """
    kinds: dict[torch.dtype | None, list[int]] = {}
    for i, (grad, size) in enumerate(zip(lists["grads"], sizes, strict=True)):
        has_ema = len(lists["ema"]) > 0 and lists["ema"][i].numel() > 0
        if size and (grad.numel() or has_ema):
            kind = grad.dtype if grad.numel() else None
            kinds.setdefault(kind, [0] * len(sizes))[i] = size
    return {kind: tuple(chosen) for kind, chosen in kinds.items()}


def constants_of(
    weight_decay: Sequence[float], betas: tuple[float, float], device: torch.device
) -> Tensor:
    """float64 [number of decays + 2], as ``corrections`` reads them."""
    logarithms = (math.log(beta) if beta else -math.inf for beta in betas)
    return device_table((*weight_decay, *logarithms), torch.float64, device)


@functools.lru_cache(maxsize=16)
def _address_table(
    places: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    grad_dtypes: tuple[torch.dtype, ...],
    others: tuple[Span, ...],
    device: torch.device,
) -> Tensor:
    """Addresses on the device, after a check that nothing written is met by another.

    others: whatever else is read.
    """
    spans = [
        (address, address + size * (dtype or grad_dtypes[i]).itemsize, is_written, f"{name}[{i}]")
        for (name, (dtype, _, is_written)), row in zip(LISTS.items(), places, strict=True)
        for i, (address, size) in enumerate(zip(row, sizes, strict=True))
        if address
    ]
    check_apart(OP, [*spans, *others])
    return device_table(tuple(itertools.chain(*places)), torch.int64, device)


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    x, copy = (torch.empty(384, device="meta", dtype=d) for d in (torch.float32, torch.bfloat16))
    rate, clip, step = (torch.empty((), device="meta") for _ in range(3))
    numbers = (rate, [0.01], 0.9, 0.999, 1e-8, clip, step, 0.99)
    for grad in (x, copy):
        states, kind = ([x], [grad], [x], [x]), str(grad.dtype)[6:]
        yield f"step {kind}", partial(adamw_ema_, *states, [], [], [], *numbers)
        yield f"step ema {kind}", partial(adamw_ema_, *states, [x], [], [], *numbers)
        yield f"step all {kind}", partial(adamw_ema_, *states, [x], [copy], [copy], *numbers)
    lists = [x], [x.new_empty(0)], [x], [x], [x]
    yield "average", partial(adamw_ema_, *lists, [], [], *numbers)
    yield "average all", partial(adamw_ema_, *lists, [copy], [copy], *numbers)
