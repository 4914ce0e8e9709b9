"""What a GPU would not do, and what it would make the host wait for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
TRANSFERS = {"_to_copy", "to", "copy_"}
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Refused(RuntimeError):
    """What a GPU would not do, or would make the host wait for."""


def name_of(op: OpOverload) -> str:
    """Without namespace and overload."""
    return op._schema.name.partition("::")[2]


def describe(x: Tensor) -> str:
    """Where a tensor is, its dtype and its shape."""
    where = "device" if x.is_meta else "host"
    return f"{where} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def waits_for_device(op: OpOverload, args: tuple, kwargs: dict) -> bool:
    """Whether an op on device tensors needs their values on the host."""
    name = name_of(op)
    if name in MASKED:
        indices = tree_leaves(args[1])
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return not DEPENDS_ON_DATA.isdisjoint(op.tags)


def check_places(op: OpOverload, tensors: list[Tensor]) -> None:
    """Refuses tensors of several places, in an op that is no transfer."""
    if any(not x.is_meta for x in tensors):
        shown = ", ".join(map(describe, tensors))
        raise Refused(f"{op}: host and device tensors in one op: {shown}")


def check_reading(op: OpOverload, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
    """Refuses an op whose result the host has to wait for."""
    if tensors and waits_for_device(op, args, kwargs):
        raise Refused(f"{op}: the host would wait for a device value: {describe(tensors[0])}")


def transfer_of(op: OpOverload, args: tuple, kwargs: dict) -> tuple[Tensor, bool, bool] | None:
    """(source, whether it goes to the device, non_blocking) if an op takes one to another place."""
    non_blocking = kwargs.get("non_blocking", False)
    if name_of(op) == "copy_":  # (target, source, non_blocking)
        source, to_device = args[1], args[0].is_meta
        non_blocking = args[2] if len(args) > 2 else non_blocking
    else:
        source, device = args[0], kwargs.get("device")
        to_device = source.is_meta if device is None else device == META
    return None if source.is_meta == to_device else (source, to_device, non_blocking)


def check_transfer(
    op: OpOverload, source: Tensor, to_device: bool, non_blocking: bool, is_pinned: bool
) -> None:
    """Refuses a transfer that the host would wait for."""
    if not to_device:
        raise Refused(f"{op}: the host would wait for a device value: {describe(source)}")
    if not (non_blocking and is_pinned):
        raise Refused(
            f"{op}: a copy to the device that is not non_blocking from pinned memory: "
            f"{describe(source)}, {'pinned' if is_pinned else 'pageable'}, {non_blocking=}"
        )
