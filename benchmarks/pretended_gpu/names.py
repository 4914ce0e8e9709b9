"""What Python sees: ``cuda`` where there are meta tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.pretended_gpu.rules import META, Refused, describe

CUDA = torch.device("cuda", 0)


class Names(TorchFunctionMode):
    """Sees every function of torch that Python calls while the GPU is there."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu
        self._special = {
            torch.device: torch.device,
            torch.tensor: lambda *args, **kwargs: _convert(torch.tensor, args, kwargs),
            torch.as_tensor: lambda *args, **kwargs: _convert(torch.as_tensor, args, kwargs),
            Tensor.new_tensor: lambda x, *a, **k: _convert(
                torch.tensor, a, {"device": x.device} | k
            ),
            Tensor.device.__get__: lambda x: CUDA if x.device == META else x.device,
            Tensor.is_cuda.__get__: lambda x: x.is_meta,
            Tensor.cuda: lambda x, *_, non_blocking=False: x.to(META, non_blocking=non_blocking),
            Tensor.pin_memory: lambda x, *_: gpu.pin(x.clone()),
            Tensor.is_pinned: lambda x, *_: gpu.is_pinned(x),
            Tensor.data_ptr: self._data_ptr,
            Tensor.backward: self._backward,
            Tensor.__repr__: self._format,
            Tensor.__format__: self._format,
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not torch.device:
            args = tuple(map(_to_meta, args))
            kwargs = {name: _to_meta(x) for name, x in kwargs.items()}
        if function in self._special:
            return self._special[function](*args, **kwargs)
        is_pinned = kwargs.pop("pin_memory", False)
        result = function(*args, **kwargs)
        return self.gpu.pin(result) if is_pinned else result

    def _data_ptr(self, x: Tensor) -> int:
        if not x.is_meta:
            return x.data_ptr()
        x = x.detach()
        if not self.gpu.has_values:  # an address, if not one of values
            return x.untyped_storage()._cdata + x.storage_offset() * x.element_size()
        return self.gpu.memory.values_of(x).data_ptr()

    def _backward(self, x: Tensor, *args, **kwargs) -> None:
        with self:  # Python code of backward passes is within it too
            torch.autograd.backward(x, *args, **kwargs)

    def _format(self, x: Tensor, *args, **kwargs) -> str:
        if x.is_meta and not self.gpu.may_wait:
            raise Refused(f"the host would wait for a device value, to show {describe(x)}")
        return format(self.gpu.value(x), *args) if args else repr(self.gpu.value(x))


def _convert(make: Callable, args: tuple, kwargs: dict) -> Tensor:
    """From numbers, which go to a device through the host's memory."""
    device = kwargs.pop("device", None)
    made = make(*args, **kwargs)
    return made if device is None else made.to(device)


def _to_meta(x: object) -> object:
    """The meta device for the names of the GPU, all else as it is."""
    is_device = isinstance(x, torch.device) and x.type == "cuda"
    return META if is_device or (isinstance(x, str) and x in ("cuda", "cuda:0")) else x
