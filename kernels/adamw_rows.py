"""AdamW of a table of which a few rows have a gradient: docs/math/adamw_ema.md.

Rows that never had one only decay, so their moments, which are zero, are neither read nor written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adamw_checks import ROWS_OP, SCALARS, check_numbers, check_table
from .adamw_ema import adamw_step, constants_of, corrections, lerp
from .launch import launch
from .previous_kernel import await_previous
from .rows import load_float, row_tile, tile_rows
from .write_set import count_change


@triton.jit(do_not_specialize=["num_rows"])
def _rows_kernel(
    p_param,  # float32 [num_rows, width]
    p_grad,  # float32 [number of gradient rows, width]
    p_place,  # int64 [num_rows], each row's gradient row, or -1
    p_touched,  # bool [num_rows]
    p_mean,  # float32 [num_rows, width]
    p_square,  # float32 [num_rows, width]
    p_ema,  # float32 [num_rows, width] if HAS_EMA
    p_constants,  # float64 [3]: weight decay, log beta1, log beta2
    p_rate,  # float32 or float64, one number
    p_clip,  # float32, one number
    p_step,  # int64 or float32, one number
    num_rows,
    width,
    new_mean,  # 1 - beta1
    new_square,  # 1 - beta2
    old_square,  # beta2
    eps,
    ema_new,  # 1 - ema_beta
    ema_old,  # ema_beta
    HAS_EMA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_previous()
    clip = tl.load(p_clip)
    num_rows = tl.where(clip == clip, num_rows, 0)  # NaN leaves the update out
    i_first = tl.program_id(0).to(tl.int64) * ROWS
    o_row, o_column, m = tile_rows(i_first, num_rows, width, ROWS, BLOCK)
    o = o_row * width + o_column
    i_place = tl.load(p_place + o_row, mask=o_row < num_rows, other=-1)
    was_touched = tl.load(p_touched + o_row, mask=o_row < num_rows, other=0) != 0
    has_grad = i_place >= 0
    m_grad = o_column < tl.where(has_grad, width, 0)
    m_moves = o_column < tl.where(has_grad | was_touched, width, 0)
    b_grad = load_float(p_grad, i_place * width + o_column, m_grad) * clip
    b_mean, b_square = load_float(p_mean, o, m_moves), load_float(p_square, o, m_moves)
    numbers = corrections(p_constants, p_rate, p_step, 0, 1)
    decays = (new_mean, new_square, old_square, eps)
    b_old = load_float(p_param, o, m)
    b_param, b_mean, b_square = adamw_step(b_old, b_mean, b_square, b_grad, numbers, decays)
    b_param = tl.where(m_moves, b_param, b_old * numbers[0])
    tl.store(p_param + o, b_param, mask=m)
    tl.store(p_mean + o, b_mean, mask=m_moves)
    tl.store(p_square + o, b_square, mask=m_moves)
    tl.store(p_touched + o_row, has_grad | was_touched, mask=o_row < num_rows)
    if HAS_EMA:
        tl.store(p_ema + o, lerp(load_float(p_ema, o, m), b_param, ema_new, ema_old), mask=m)


def adamw_ema_rows_(
    param: Tensor, grad: Tensor, rows: Tensor, touched: Tensor, exp_avg: Tensor,
    exp_avg_sq: Tensor, ema: Tensor, learning_rate: Tensor, weight_decay: float, beta1: float,
    beta2: float, eps: float, clip_factor: Tensor, step: Tensor, ema_beta: float,
) -> None:  # fmt: skip
    """One step in place; ``rows`` are some of the table's, each once, which stays unchecked."""
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "ema": ema}
    numbers, betas = (learning_rate, clip_factor, step), (beta1, beta2)
    check_table(param, grad, rows, touched, state, dict(zip(SCALARS, numbers, strict=True)))
    check_numbers(ROWS_OP, 1, param.device, numbers, [weight_decay], betas, eps, ema_beta)
    place = torch.full((param.shape[0],), -1, dtype=torch.int64, device=param.device)
    place.index_copy_(0, rows, torch.arange(rows.numel(), device=param.device))
    tile = row_tile("adamw_ema_rows_", max(param.shape[1], 1))
    launch(
        _rows_kernel, (triton.cdiv(param.shape[0], tile["ROWS"]),), param, grad.contiguous(), place,
        touched, exp_avg, exp_avg_sq, ema if ema.numel() else param,
        constants_of([weight_decay], betas, param.device), *numbers, *param.shape, 1 - beta1,
        1 - beta2, beta2, eps, 1 - ema_beta, ema_beta, HAS_EMA=ema.numel() > 0, **tile,
    )  # fmt: skip
    count_change({"param": param, "touched": touched, **state})


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width in (384, 768, 1024):
        x, none = torch.empty(64, width, device="meta"), torch.empty(0, device="meta")
        rows, touched = (x.new_empty(64, dtype=d) for d in (torch.int64, torch.bool))
        scalar = x.new_empty(())
        numbers = (scalar, 0.01, 0.9, 0.999, 1e-8, scalar, scalar, 0.99)
        for name, ema in (("", none), (" ema", x)):
            state = (x, x, rows, touched, x, x, ema)
            yield f"{width}{name}", partial(adamw_ema_rows_, *state, *numbers)
