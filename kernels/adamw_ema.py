"""AdamW, the teacher's average and low-precision copies over all tensors: docs/math/adamw_ema.md.

The gradients' norm is deterministic: tiles of fixed size, added in a fixed order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adamw_checks import LISTS, OP, SCALARS, check_gradients, check_lists, check_numbers
from .checks import check_written
from .launch import launch
from .launch_table import TABLE
from .memory import extent_of
from .previous_kernel import await_previous
from .tensor_table import (
    addresses,
    device_table,
    load_piece,
    load_tile,
    pieces,
    store_tile,
    tensor_at,
)
from .write_set import Span, check_apart, check_autograd, check_write_set, count_change

# A program updates a piece, a few tiles, which share the float64 arithmetic of the corrections.
UPDATE_PIECE = 8192
# Tiles are summed in float32, pieces in float64. A hundred million gradients make 6,700 pieces.
NORM_PIECE = 16384
TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def corrections(p_constants, p_rate, p_step, i_tensor, num_tensors):
    """float32 (1 - rate * decay, rate / (1 - beta1^step), 1 / sqrt(1 - beta2^step)) of a tensor."""
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
    HAS_EMA: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Elements ``o`` of one tensor; others: places of the addresses of average and both copies,
    numbers: corrections, clip factor, decays of the moments and weights of the average."""
    b_param = _adamw_tile(state, numbers[0], numbers[1], numbers[2], o, i_end, WHOLE)
    if HAS_COPIES:
        _store_copy(others[1], o, i_end, b_param, ALIGNED, WHOLE)
    if HAS_EMA:
        place = (others[0], others[2], numbers[3])
        _average_tile(*place, b_param, o, i_end, HAS_COPIES, ALIGNED, WHOLE)


@triton.jit(do_not_specialize=["num_tensors", "rate_stride"])
def _update_kernel(
    p_addresses,  # int64 [7, num_tensors], of the tensors of each list of LISTS
    p_pieces,  # int64 [num_pieces, 3]
    p_constants,  # float64 [num_tensors + 2]: weight decays, log beta1, log beta2
    p_rates,  # float32 or float64, rate_stride apart
    p_clip,  # float32, one number
    p_step,  # int64 or float32, one number
    num_tensors,
    rate_stride,
    new_mean,  # 1 - beta1
    new_square,  # 1 - beta2
    old_square,  # beta2
    eps,
    ema_new,  # 1 - ema_beta
    ema_old,  # ema_beta
    GRAD: tl.constexpr,
    HAS_EMA: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_tensor, i_begin, i_end = load_piece(p_pieces, tl.program_id(0).to(tl.int64))
    clip = tl.load(p_clip)
    i_end = tl.where(clip == clip, i_end, i_begin)  # NaN leaves the update out
    p_rate = p_rates + i_tensor * rate_stride
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
            _update_tile(*tensors, numbers, o, i_end, HAS_EMA, HAS_COPIES, ALIGNED, True)
        else:
            _update_tile(*tensors, numbers, o, i_end, HAS_EMA, HAS_COPIES, ALIGNED, False)


@triton.jit
def _square_sums_kernel(
    p_addresses,  # int64 [num_tensors]
    p_pieces,  # int64 [num_pieces, 3]
    p_sums,  # float64 [num_pieces]
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    i_piece = tl.program_id(0).to(tl.int64)
    i_tensor, i_begin, i_end = load_piece(p_pieces, i_piece)
    p_grad = tensor_at(p_addresses + i_tensor, GRAD, ALIGNED)
    total = tl.zeros((), tl.float64)
    for i_first in range(i_begin, i_end, BLOCK):
        o = i_first + tl.arange(0, BLOCK)
        if i_first + BLOCK <= i_end:
            b_grad = load_tile(p_grad, o, i_end, True)
        else:
            b_grad = load_tile(p_grad, o, i_end, False)
        total += tl.sum(b_grad * b_grad, axis=0).to(tl.float64)
    tl.store(p_sums + i_piece, total)


@triton.jit(do_not_specialize=["num_pieces"])
def _root_kernel(
    p_sums,  # float64 [num_pieces]
    p_norm,  # float32, one number
    num_pieces,
    BLOCK: tl.constexpr,
):
    await_previous()
    b_total = tl.zeros((BLOCK,), tl.float64)
    for i_first in range(0, num_pieces, BLOCK):
        o = i_first + tl.arange(0, BLOCK)
        b_total += tl.load(p_sums + o, mask=o < num_pieces, other=0.0)
    tl.store(p_norm, tl.sqrt(tl.sum(b_total, axis=0)).to(tl.float32))


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
    sizes = tuple(p.numel() for p in params)
    table, parts = _tables(places, sizes, grads[0].dtype, tuple(others), device)
    constants = constants_of(weight_decay, betas, device)
    launch(
        _update_kernel, (parts.shape[0],), table, parts, constants, *numbers, len(params),
        learning_rate.stride(0) if learning_rate.dim() else 0, 1 - beta1, 1 - beta2, beta2, eps,
        1 - ema_beta, ema_beta, GRAD=TRITON_TYPES[grads[0].dtype], HAS_EMA=len(ema) > 0,
        HAS_COPIES=len(low_precision) + len(ema_low_precision) > 0, ALIGNED=_aligned(places),
        **TABLE["adamw_ema_"].constants,
    )  # fmt: skip
    count_change(written)


def constants_of(
    weight_decay: Sequence[float], betas: tuple[float, float], device: torch.device
) -> Tensor:
    """float64 [number of decays + 2], as ``corrections`` reads them."""
    logarithms = (math.log(beta) if beta else -math.inf for beta in betas)
    return device_table((*weight_decay, *logarithms), torch.float64, device)


@functools.lru_cache(maxsize=16)
def _tables(
    places: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    grad_dtype: torch.dtype,
    others: tuple[Span, ...],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(addresses, pieces) on the device, after a check that nothing written is met by another.

    others: whatever else is read.
    """
    spans = [
        (address, address + size * (dtype or grad_dtype).itemsize, is_written, f"{name}[{i}]")
        for (name, (dtype, _, is_written)), row in zip(LISTS.items(), places, strict=True)
        for i, (address, size) in enumerate(zip(row, sizes, strict=True))
        if address
    ]
    check_apart(OP, [*spans, *others])
    table = device_table(tuple(itertools.chain(*places)), torch.int64, device)
    return table, pieces(sizes, UPDATE_PIECE, device)


def _aligned(places: Iterable[tuple[int, ...]]) -> bool:
    """Whether 16-byte accesses may be used; fresh tensors begin at multiples of 64 or more."""
    return not any(address % 16 for row in places for address in row)


def gradient_norm_into(grads: Sequence[Tensor], out: Tensor) -> None:
    """The 2-norm of all gradients together, float32, 0-dim; in the order of fixed pieces."""
    op = "gradient_norm"
    check_gradients(op, grads)
    device = grads[0].device if grads else out.device
    check_written(op, "out", out, torch.float32, (), device)
    check_write_set(op, {"out": out}, {"grads": grads})
    dense = [g.contiguous() for g in grads]
    places, sizes = addresses(dense), tuple(g.numel() for g in dense)
    parts = pieces(sizes, NORM_PIECE, device)
    sums = torch.empty(parts.shape[0], dtype=torch.float64, device=device)
    table, tile = device_table(places, torch.int64, device), TABLE["gradient_norm"].constants
    grad_type = TRITON_TYPES[grads[0].dtype if grads else torch.float32]
    constants = {"GRAD": grad_type, "ALIGNED": _aligned([places])}
    launch(_square_sums_kernel, sums.shape, table, parts, sums, **constants, **tile)
    launch(_root_kernel, (1,), sums, out, sums.shape[0], **tile)
    count_change({"out": out})


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
        yield f"norm {kind}", partial(gradient_norm_into, [grad], rate)
