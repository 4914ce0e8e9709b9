"""NumPy's ``.npy`` files of one dimension: appended to piece by piece, mapped into memory."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy

_CHUNK = 1 << 26  # bytes
_MAP_NORESERVE = 0x4000  # Linux's number; Python has a name for it from 3.13 on


class ArrayWriter:
    """Writes an array whose length shows at the end.

    The header has room for any length, as NumPy writes it for that purpose.
    """

    def __init__(self, path: Path, dtype: type):
        self._file, self._dtype = path.open("wb"), np.dtype(dtype)
        self._length = self._crc32 = 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Adds some values, of the file's dtype."""
        assert values.dtype == self._dtype and values.ndim == 1
        data = np.ascontiguousarray(values).data
        self._file.write(data)
        self._length, self._crc32 = self._length + len(values), zlib.crc32(data, self._crc32)

    def finish(self) -> dict[str, Any]:
        """Closes the file; says what is in it, for ``mapped``."""
        num_bytes = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.close()
        shape = {"dtype": self._dtype.str, "length": self._length}
        return {**shape, "bytes": num_bytes, "crc32": self._crc32}

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write_header(self) -> None:
        descr = npy.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._length,)}
        npy.write_array_header_1_0(self._file, header)


def mapped(path: Path, facts: dict[str, Any], tick: Callable[[], object]) -> np.ndarray:
    """The array of a file that ``ArrayWriter`` wrote, checked.

    Its memory is the file's, shared by all processes that map it. Who writes to the array gets
    pages of its own; the file never changes.

    Args:
        facts: what ``ArrayWriter.finish`` returned.
        tick: called every 64 MiB.

    Raises:
        ValueError: the file is not what it was when it was written. OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if (size := path.stat().st_size) != facts["bytes"]:
        raise ValueError(f"{path.name} has {size:,} bytes instead of {facts['bytes']:,}")
    array = _map(path, facts)
    if _crc32_of(array, tick) != facts["crc32"]:
        raise ValueError(f"{path.name} has another checksum")
    return array


def _map(path: Path, facts: dict[str, Any]) -> np.ndarray:
    """The array in a file. ValueError where its header is another.

    The mapping is private and writable, since torch has no read-only tensors; no memory is set
    aside for writes, so the file may be larger than the memory.
    """
    with path.open("rb") as file:
        try:
            is_known = npy.read_magic(file) == (1, 0)
            shape, _, dtype = npy.read_array_header_1_0(file)
        except ValueError:
            is_known = False
        if not is_known or (dtype.str, shape) != (facts["dtype"], (facts["length"],)):
            raise ValueError(f"{path.name} has another header")
        flags, protection = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
        return np.frombuffer(memory, dtype, offset=file.tell())


def _crc32_of(array: np.ndarray, tick: Callable[[], object]) -> int:
    data, value = memoryview(array).cast("B"), 0
    for first in range(0, len(data), _CHUNK):
        value = zlib.crc32(data[first : first + _CHUNK], value)
        tick()
    return value
