"""Every op on the pretended GPU: checked, and run on the values."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.pretended_gpu.memory import Memory
from benchmarks.pretended_gpu.rules import (
    META,
    TRANSFERS,
    Refused,
    check_places,
    check_reading,
    check_transfer,
    describe,
    name_of,
    transfer_of,
)


class Operations(TorchDispatchMode):
    """Sees every op while the GPU is there."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, op: OpOverload, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            if kwargs.get("device") != META and not any(x.is_meta for x in tensors):
                return op(*args, **kwargs)
            self._check(op, args, kwargs, tensors)
            result = self._run(op, args, kwargs, tensors)
            for observe in self.gpu.observers:
                observe(op, args, kwargs, result)
            return result

    def _check(self, op: OpOverload, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
        if name_of(op) in TRANSFERS:
            if transfer := transfer_of(op, args, kwargs):
                self._check_transfer(op, *transfer)
            return
        check_places(op, tensors)
        if not self.gpu.may_wait:
            check_reading(op, args, kwargs, tensors)

    def _check_transfer(self, op, source: Tensor, to_device: bool, non_blocking: bool) -> None:
        if self.gpu.recorder:
            raise Refused(f"{op}: a graph would copy this at every replay: {describe(source)}")
        if not self.gpu.may_wait:
            check_transfer(op, source, to_device, non_blocking, self.gpu.is_pinned(source))

    def _run(self, op: OpOverload, args: tuple, kwargs: dict, tensors: list[Tensor]):
        # Forward mode stands for zero tangents with tensors that have no memory.
        is_zero = name_of(op) == "_efficientzerotensor" or any(x._is_zerotensor() for x in tensors)
        if op.is_view or is_zero or not self.gpu.has_values:
            return op(*args, **kwargs)
        call = _Call(self.gpu.memory)
        values = tree_map(call.to_values, (args, kwargs))
        with self.gpu.recorder or nullcontext():
            result = op(*values[0], **values[1])
        leaves = name_of(op) in TRANSFERS and kwargs.get("device", META) != META
        return result if leaves else tree_map(call.to_tensors, result)


class _Call:
    """Tensors of one call and their values."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self._storages: dict[int, torch.UntypedStorage] = {}  # by address of the values' storage
        self._arguments: list[tuple[Tensor, Tensor]] = []  # (values, tensor)

    def to_values(self, x: object) -> object:
        """What the op is called with, for an argument."""
        if not isinstance(x, Tensor):
            return torch.device("cpu") if x == META else x
        values = x
        if x.is_meta:
            values = self.memory.values_of(x)
            self._storages[values.untyped_storage()._cdata] = x.untyped_storage()
        self._arguments.append((values, x))
        return values

    def to_tensors(self, result: object) -> object:
        """What the caller gets, for a part of the result: an argument that was written, itself."""
        if not isinstance(result, Tensor):
            return result
        same = (x for values, x in self._arguments if values is result)
        found = next(same, None)
        return self.memory.tensor_of(result, self._storages) if found is None else found
