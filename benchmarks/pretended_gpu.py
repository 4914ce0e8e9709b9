"""A GPU that is not there: device code runs, and what would make the host wait is refused.

    with PretendedGpu() as gpu:
        step = build_step(model.to("cuda"), ...)
        with gpu.no_waits():
            step.round(batches, 0)

A tensor on this GPU is one of torch's ``meta`` device: shape and strides, no memory. A dispatch
mode sees every op that torch is about to run, those of backward passes and of forward mode among
them, checks where its tensors are, and runs it on values that it keeps in the host's memory. To
Python such a tensor's device is ``cuda``, and what chooses by device chooses as on a GPU.

Refused everywhere: an op of a host tensor and a device tensor. That includes the host's 0-dim
tensors, which torch allows: their value would be frozen in a captured graph.
Refused while a graph is captured: copies from or to the host, and pinned memory.
Refused within ``no_waits``: reading a device value (``item``, ``tolist``, ``cpu``, ``bool``),
results whose size depends on data (``nonzero``, indexing by a boolean mask), and copies to the
device that are not ``non_blocking`` from pinned memory.

The dispatcher does not see what a CUDA kernel's host code does: ops of the extension, and those of
torch that wait on CUDA alone, are taken at their schema's word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from sbrrt_fast.ops import native
from sbrrt_fast.ops.registry import OPS

CUDA, META = torch.device("cuda", 0), torch.device("meta")
TRANSFERS = {"_to_copy", "to", "copy_"}
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FIRST_SWEEP = 4096  # storages

Observer = Callable[[torch._ops.OpOverload, tuple, dict, object], None]


class Refused(RuntimeError):
    """What a GPU would not do, or would make the host wait for."""


class PretendedGpu:
    """Within it, ``cuda`` is a device.

    Args:
        has_values: False keeps shapes alone: nothing is computed, and nothing can be read.

    Attributes:
        observers: called with (op, arguments, keyword arguments, result) of every op on the device,
            views and copies to it included.
    """

    active: PretendedGpu | None = None

    def __init__(self, has_values: bool = True):
        self.has_values, self.observers = has_values, []
        self.may_wait = True
        self.recorder: TorchDispatchMode | None = None
        self._memory = _Memory()
        self._pinned = _Marks()

    def __enter__(self) -> PretendedGpu:
        assert PretendedGpu.active is None, "there is one pretended GPU at a time"
        PretendedGpu.active = self
        with ExitStack() as stack:
            stack.callback(setattr, PretendedGpu, "active", None)
            stack.enter_context(patch.object(native, "_cuda_missing", lambda: None))
            stack.enter_context(patch.object(torch.cuda, "Event", _Event))
            # autograd's functions run Python code, which must not be outside of the mode.
            stack.enter_context(patch.object(torch.autograd, "has_torch_function", _never))
            for op in OPS:
                stack.enter_context(patch.dict(op._not_built, cuda=None))
            stack.enter_context(_Operations(self))
            stack.enter_context(_Names(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Within it the host may not wait for the device."""
        self.may_wait = False
        try:
            yield
        finally:
            self.may_wait = True

    @contextmanager
    def recording(self, mode: TorchDispatchMode) -> Iterator[None]:
        """Within it ``mode`` sees the device's work as ops on the values."""
        assert self.has_values, "there is no work to record"
        self.recorder = mode
        try:
            yield
        finally:
            self.recorder = None

    def value(self, x: Tensor) -> Tensor:
        """A copy of a tensor in the host's memory, without asking whether the host may wait."""
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return self._memory.values_of(x.detach()).clone() if x.is_meta else x.detach().clone()

    def pin(self, x: Tensor) -> Tensor:
        """Marks a host tensor's memory as pinned; a capturing GPU gives no such memory."""
        if self.recorder:
            raise Refused("pinned memory cannot be allocated while a graph is captured")
        self._pinned.add(x)
        return x

    def is_pinned(self, x: Tensor) -> bool:
        return x in self._pinned


@contextmanager
def recording(mode: TorchDispatchMode) -> Iterator[None]:
    """Within it ``mode`` sees the device's work: the pretended GPU's, or without one every op."""
    gpu = PretendedGpu.active
    with gpu.recording(mode) if gpu else mode:
        yield


def waits_for_device(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> bool:
    """Whether an op on device tensors needs their values on the host."""
    name = name_of(op)
    if name in MASKED:
        indices = tree_leaves(args[1])
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return not DEPENDS_ON_DATA.isdisjoint(op.tags)


def name_of(op: torch._ops.OpOverload) -> str:
    """Without namespace and overload."""
    return op._schema.name.partition("::")[2]


def _never(arguments: object) -> bool:
    return False


class _Event:
    """Stands for torch.cuda.Event: all work is done when it is given."""

    def record(self, *stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Marks:
    """A set of storages, which it does not keep alive."""

    def __init__(self):
        self._found: dict[int, StorageWeakRef] = {}
        self._limit = FIRST_SWEEP

    def add(self, x: Tensor) -> None:
        self._sweep()
        storage = x.untyped_storage()
        self._found[storage._cdata] = StorageWeakRef(storage)

    def __contains__(self, x: Tensor) -> bool:
        # An address is not used again while there is a weak reference to it.
        return x.untyped_storage()._cdata in self._found

    def _sweep(self) -> None:
        if len(self._found) >= self._limit:
            for key in [key for key, weak in self._found.items() if weak.expired()]:
                self._forget(key)
            self._limit = max(2 * len(self._found), FIRST_SWEEP)

    def _forget(self, key: int) -> None:
        del self._found[key]


class _Memory(_Marks):
    """The values behind the storages of meta tensors."""

    def __init__(self):
        super().__init__()
        self._values: dict[int, torch.UntypedStorage] = {}

    def _forget(self, key: int) -> None:
        super()._forget(key)
        del self._values[key]

    def values_of(self, x: Tensor) -> Tensor:
        """A tensor on the values of a meta tensor, with its shape and strides."""
        if x not in self:
            raise Refused(f"{describe(x)} was not made on the pretended GPU")
        storage = self._values[x.untyped_storage()._cdata]
        return torch.empty(0, dtype=x.dtype).set_(storage, x.storage_offset(), x.shape, x.stride())

    def tensor_of(self, values: Tensor, known: dict[int, torch.UntypedStorage]) -> Tensor:
        """A meta tensor for values; ``known`` has the storages of the op's arguments."""
        storage = values.untyped_storage()
        meta = known.get(storage._cdata)
        if meta is None:
            meta = known[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device="meta")
        found = torch.empty(0, dtype=values.dtype, device=META).set_(
            meta, values.storage_offset(), values.shape, values.stride()
        )
        if found not in self:
            self.add(found)
            self._values[meta._cdata] = storage
        return found


class _Operations(TorchDispatchMode):
    """Checks every op and runs it on the values."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            if not _makes_device_tensor(kwargs) and not any(x.is_meta for x in tensors):
                return op(*args, **kwargs)
            self._check(op, args, kwargs, tensors)
            run = self._on_values if self.gpu.has_values else self._on_shapes
            result = run(op, args, kwargs)
            for observe in self.gpu.observers:
                observe(op, args, kwargs, result)
            return result

    def _check(self, op, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
        if name_of(op) in TRANSFERS:
            return self._check_transfer(op, args, kwargs)
        of_host = [x for x in tensors if not x.is_meta]
        if of_host:
            shown = ", ".join(map(describe, tensors))
            raise Refused(f"{op}: host and device tensors in one op: {shown}")
        if not self.gpu.may_wait and tensors and waits_for_device(op, args, kwargs):
            raise Refused(f"{op}: the host would wait for a device value: {describe(tensors[0])}")
        return None

    def _check_transfer(self, op, args: tuple, kwargs: dict) -> None:
        """``copy_`` into args[0], or a copy of args[0] that goes to a device."""
        if name_of(op) == "copy_":
            source, to_device = args[1], args[0].is_meta
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            source, device = args[0], kwargs.get("device")
            to_device = args[0].is_meta if device is None else device.type == "meta"
            non_blocking = kwargs.get("non_blocking", False)
        if source.is_meta == to_device:
            return
        if self.gpu.recorder:
            raise Refused(f"{op}: a graph would copy this at every replay: {describe(source)}")
        if self.gpu.may_wait:
            return
        if not to_device:
            raise Refused(f"{op}: the host would wait for a device value: {describe(source)}")
        if not (non_blocking and self.gpu.is_pinned(source)):
            kind = "pinned" if self.gpu.is_pinned(source) else "pageable"
            raise Refused(
                f"{op}: a copy to the device that is not non_blocking from pinned memory: "
                f"{describe(source)}, {kind}, non_blocking={non_blocking}"
            )

    def _on_shapes(self, op, args: tuple, kwargs: dict):
        return op(*args, **kwargs)

    def _on_values(self, op, args: tuple, kwargs: dict):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_meta]
        # Forward mode stands for zero tangents with tensors that have no memory.
        is_zero = name_of(op) == "_efficientzerotensor" or any(x._is_zerotensor() for x in tensors)
        if op.is_view or is_zero:
            return op(*args, **kwargs)
        memory, metas, known = self.gpu._memory, {}, {}
        leaves = name_of(op) in TRANSFERS and kwargs.get("device", META).type == "cpu"

        def to_values(x):
            if isinstance(x, Tensor) and x.is_meta:
                values = memory.values_of(x)
                metas[id(values)] = x, values
                known[values.untyped_storage()._cdata] = x.untyped_storage()
                return values
            return torch.device("cpu") if x == META else x

        args, kwargs = tree_map(to_values, (args, kwargs))
        with self.gpu.recorder or nullcontext():
            result = op(*args, **kwargs)
        if leaves:
            return result

        def to_meta(x):
            if not isinstance(x, Tensor):
                return x
            return metas[id(x)][0] if id(x) in metas else memory.tensor_of(x, known)

        return tree_map(to_meta, result)


class _Names(TorchFunctionMode):
    """Python says ``cuda`` and means the meta device."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self.gpu = gpu
        self._special = {
            Tensor.device.__get__: _device_of,
            Tensor.is_cuda.__get__: lambda x: x.is_meta,
            Tensor.data_ptr: self._data_ptr,
            Tensor.pin_memory: lambda x, *device: gpu.pin(x.clone()),
            Tensor.is_pinned: lambda x, *device: gpu.is_pinned(x),
            Tensor.backward: self._backward,
            Tensor.cuda: lambda x, *a, non_blocking=False: x.to(META, non_blocking=non_blocking),
            Tensor.new_tensor: lambda x, *a, **k: _made(torch.tensor, a, {"device": x.device} | k),
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        kwargs = {name: _translated(x) for name, x in (kwargs or {}).items()}
        args = tuple(map(_translated, args))
        if function in self._special:
            return self._special[function](*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor):
            return _made(function, args, kwargs)
        is_pinned = kwargs.pop("pin_memory", False)
        result = function(*args, **kwargs)
        return self.gpu.pin(result) if is_pinned else result

    def _backward(
        self, x: Tensor, gradient=None, retain_graph=None, create_graph=False, inputs=None
    ):
        with self:
            torch.autograd.backward(x, gradient, retain_graph, create_graph, inputs=inputs)

    def _data_ptr(self, x: Tensor) -> int:
        if not (x.is_meta and self.gpu.has_values):
            return x.data_ptr()
        return self.gpu._memory.values_of(x.detach()).data_ptr()


def _made(make: Callable, args: tuple, kwargs: dict) -> Tensor:
    """From numbers, which go to a device through the host's memory."""
    device = kwargs.pop("device", None)
    made = make(*args, **kwargs)
    return made if device is None else made.to(device)


def _device_of(x: Tensor) -> torch.device:
    return CUDA if x.device == META else x.device


def _translated(x: object) -> object:
    is_cuda = (isinstance(x, torch.device) and x.type == "cuda") or (
        isinstance(x, str) and x in ("cuda", "cuda:0")
    )
    return META if is_cuda else x


def _makes_device_tensor(kwargs: dict) -> bool:
    device = kwargs.get("device")
    return device is not None and device.type == "meta"


def describe(x: Tensor) -> str:
    """Where a tensor is, its dtype and its shape."""
    where = "device" if x.is_meta else "host"
    return f"{where} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
