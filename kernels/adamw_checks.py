"""Checks of the optimiser's arguments; see ``checks``. A step has hundreds of tensors: each is
looked at once, and described only when something is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checks import FLOATING, check_tensor
from .write_set import check_write_set

# Of each list: its dtype, whether it may be empty (an entry without elements then leaves its
# parameter out) and whether it is written. A parameter whose entry of grads has no elements stays
# as it is, and its moments may have none either.
LISTS = {
    "params": (torch.float32, False, True),
    "exp_avg": (torch.float32, False, True),
    "exp_avg_sq": (torch.float32, False, True),
    "grads": (None, False, False),
    "ema": (torch.float32, True, True),
    "low_precision": (torch.bfloat16, True, True),
    "ema_low_precision": (torch.bfloat16, True, True),
}
OF_AN_UPDATE = "grads", "exp_avg", "exp_avg_sq"
SCALARS = "learning_rate", "clip_factor", "step"
OP, ROWS_OP = "adamw_ema_", "adamw_ema_rows_"


def check_lists(lists: Mapping[str, Sequence[Tensor]]) -> None:
    """Every list fits the parameters.

    Raises:
        TypeError: a dtype. ValueError: a number of entries, a shape, a device or a layout.
    """
    params = lists["params"]
    check_gradients(OP, lists["grads"])
    for name, (_, optional, _) in LISTS.items():
        tensors = lists[name]
        if len(tensors) != len(params) and not (optional and not tensors):
            wanted = f"{'no entries or ' if optional else ''}{len(params)}"
            raise ValueError(f"{OP}: {name} must have {wanted} like params, got {len(tensors)}")
    for i, (param, grad) in enumerate(zip(params, lists["grads"], strict=True)):
        is_idle = param.numel() and not grad.numel()
        for name, (dtype, optional, written) in LISTS.items():
            x = lists[name][i] if lists[name] else None
            may_lack = optional or (is_idle and name in OF_AN_UPDATE)
            if x is None or (may_lack and not x.numel()):
                continue
            if not _fits(x, param, dtype or x.dtype, written):
                _complain(f"{name}[{i}]", x, param, dtype or x.dtype)
    _check_averages(lists["ema"], lists["ema_low_precision"])


def _fits(x: Tensor, param: Tensor, dtype: torch.dtype, written: bool) -> bool:
    is_same = x.dtype == dtype and x.shape == param.shape and x.device == param.device
    return is_same and (not written or x.is_contiguous())


def _complain(name: str, x: Tensor, param: Tensor, dtype: torch.dtype) -> None:
    check_tensor(OP, name, x, dtype, tuple(param.shape), param.device)
    raise ValueError(
        f"{OP}: {name} is written in place and must be contiguous, got strides {x.stride()}"
    )


def _check_averages(ema: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for i, copy in enumerate(copies):
        if copy.numel() and not (ema and ema[i].numel()):
            raise ValueError(f"{OP}: ema_low_precision[{i}] needs ema[{i}]")


def check_table(
    param: Tensor, grad: Tensor, rows: Tensor, touched: Tensor, state: Mapping[str, Tensor],
    scalars: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """A table [num_rows, width] with its moments and average, and a gradient of some rows.

    scalars: whatever else is read on the device.
    """
    op, device = ROWS_OP, param.device
    check_tensor(op, "param", param, torch.float32, tuple(param.shape), device)
    if param.dim() != 2:
        raise ValueError(f"{op}: param must have two dimensions, got {list(param.shape)}")
    num_rows, width = param.shape
    check_tensor(op, "rows", rows, torch.int64, (rows.numel(),), device)
    check_tensor(op, "grad", grad, torch.float32, (rows.numel(), width), device)
    check_tensor(op, "touched", touched, torch.bool, (num_rows,), device)
    for name, x in state.items():
        if name != "ema" or x.numel():
            check_tensor(op, name, x, torch.float32, (num_rows, width), device)
    written = {"param": param, "touched": touched, **state}
    for name, x in written.items():
        if not x.is_contiguous():
            raise ValueError(f"{op}: {name} is written in place and must be contiguous")
    read = {"grad": grad, "rows": rows, **scalars}
    check_write_set(op, written, read)


def check_gradients(op: str, grads: Sequence[Tensor]) -> None:
    """Each of a dtype that the kernels compute with, all on one device."""
    for i, grad in enumerate(grads):
        if grad.dtype not in FLOATING:
            raise TypeError(
                f"{op}: grads must have dtype float32, bfloat16 or float16, got {grad.dtype}"
                f" in grads[{i}]"
            )
        if grad.device != grads[0].device or grad.layout != torch.strided:
            shape = tuple(grad.shape)
            check_tensor(op, f"grads[{i}]", grad, grad.dtype, shape, grads[0].device)


def check_numbers(
    op: str, num_params: int, device: torch.device, tensors: tuple[Tensor, Tensor, Tensor],
    weight_decay: Sequence[float], betas: tuple[float, float], eps: float, ema_beta: float,
) -> None:  # fmt: skip
    """The rest; tensors are learning_rate, clip_factor and step, whose values stay unread."""
    rate, clip, step = tensors
    if rate.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: learning_rate must have dtype float32 or float64, got {rate.dtype}")
    check_tensor(op, "clip_factor", clip, torch.float32, (), device)
    if step.dtype not in (torch.int64, torch.float32):
        raise TypeError(f"{op}: step must have dtype int64 or float32, got {step.dtype}")
    for name, x in (("learning_rate", rate), ("step", step)):
        check_tensor(op, name, x, x.dtype, (num_params,) * x.dim(), device)
        if x.dim() > 1:
            raise ValueError(f"{op}: {name} must be [] or [{num_params}], got {x.dim()} dims")
    if len(weight_decay) != num_params:
        raise ValueError(
            f"{op}: weight_decay must have {num_params} entries like params, got "
            f"{len(weight_decay)}"
        )
    for name, holds, value in (
        ("weight_decay must be >= 0", all(x >= 0 for x in weight_decay), weight_decay),
        ("betas must be in [0, 1)", all(0 <= x < 1 for x in betas), betas),
        ("eps must be >= 0", eps >= 0, eps),
        ("ema_beta must be in [0, 1]", 0 <= ema_beta <= 1, ema_beta),
    ):
        if not holds:
            raise ValueError(f"{op}: {name}, got {value}")
