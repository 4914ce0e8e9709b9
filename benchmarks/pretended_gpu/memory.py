"""The values of tensors that have none, by storage."""

from __future__ import annotations

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.pretended_gpu.rules import META, Refused, describe

FIRST_SWEEP = 4096  # storages


class Marks:
    """A set of tensors' storages, which it does not keep alive."""

    def __init__(self):
        # An address is not used again while there is a weak reference to it.
        self._references: dict[int, StorageWeakRef] = {}
        self._limit = FIRST_SWEEP

    def __len__(self) -> int:
        return len(self._references)

    def __contains__(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self._references

    def add(self, x: Tensor) -> None:
        if len(self) >= self._limit:
            self._sweep()
        storage = x.untyped_storage()
        self._references[storage._cdata] = StorageWeakRef(storage)

    def _sweep(self) -> None:
        """Forgets the storages that are gone; the next time is when as many have come again."""
        for key in [key for key, weak in self._references.items() if weak.expired()]:
            self._forget(key)
        self._limit = max(2 * len(self), FIRST_SWEEP)

    def _forget(self, key: int) -> None:
        del self._references[key]


class Memory(Marks):
    """The device's memory: the values behind the storages of meta tensors."""

    def __init__(self):
        super().__init__()
        self._values: dict[int, UntypedStorage] = {}

    def values_of(self, x: Tensor) -> Tensor:
        """A tensor on the values of a meta tensor, with its shape and strides.

        Raises:
            Refused: it was not made here.
        """
        if x not in self:
            raise Refused(f"{describe(x)} was not made on the pretended GPU")
        storage = self._values[x.untyped_storage()._cdata]
        return torch.empty(0, dtype=x.dtype).set_(storage, x.storage_offset(), x.shape, x.stride())

    def tensor_of(self, values: Tensor, known: dict[int, UntypedStorage]) -> Tensor:
        """A meta tensor for values.

        Args:
            known: meta storages by address of the values' storage, of the op that made them; a new
                one is added.
        """
        storage = values.untyped_storage()
        if storage._cdata not in known:
            known[storage._cdata] = UntypedStorage(storage.nbytes(), device="meta")
        meta, layout = known[storage._cdata], (values.shape, values.stride())
        tensor = torch.empty(0, dtype=values.dtype, device=META)
        tensor.set_(meta, values.storage_offset(), *layout)
        if tensor not in self:
            self.add(tensor)
            self._values[meta._cdata] = storage
        return tensor

    def _forget(self, key: int) -> None:
        super()._forget(key)
        del self._values[key]
