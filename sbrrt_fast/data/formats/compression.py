"""Files as their bytes were before they were compressed, by ending: .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sbrrt_fast.data.formats.optional import import_optional
from sbrrt_fast.errors import DataError


class ZstandardFile(io.RawIOBase):
    """Reads a .zst file. The library's own reader takes a file that was cut off for a whole one.

    Raises:
        EOFError: a frame is not complete.
    """

    def __init__(self, file: BinaryIO):
        zstandard = import_optional("zstandard", "zst", "a .zst file")
        self._file, self._decompressor = file, zstandard.ZstdDecompressor()
        self._frame: Any = None  # the one that is being read
        self._content, self._compressed = memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._compressed = self._compressed or self._file.read(_ZSTANDARD_CHUNK)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._content))
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count

    def _decompress(self) -> None:
        self._frame = self._frame or self._decompressor.decompressobj()
        self._content = memoryview(self._frame.decompress(self._compressed))
        self._compressed = self._frame.unused_data
        if self._frame.eof:
            self._frame = None


_ZSTANDARD_CHUNK = 1024  # bytes, of which at most 32 MiB come
_OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: io.BufferedReader(ZstandardFile(file)),
}


def is_compressed(path: Path) -> bool:
    """Whether the file's ending says that it is compressed."""
    return path.suffix.lower() in _OPENERS


def ending(path: Path) -> str:
    """The ending in lower case, below that of the compression: ``.csv`` of ``A.CSV.gz``."""
    return (path.with_suffix("") if is_compressed(path) else path).suffix.lower()


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file for reading bytes, decompressed.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is no regular file, or cannot be read or decompressed, in the body too.
    """
    with open_regular(path) as file:
        if not is_compressed(path):
            yield file
            return
        with _decompressing(path), _OPENERS[path.suffix.lower()](file) as content:
            yield content


def open_regular(path: Path) -> BinaryIO:
    """The file as it is; raises like ``open_bytes``."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: cannot be read (not a regular file); name a text file")
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


@contextmanager
def _decompressing(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error)
    except Exception as error:  # of an optional library, which cannot be named without it
        if type(error).__name__ != "ZstdError":
            raise
        reason = str(error)
    else:
        return
    raise DataError(
        f"{path}: cannot be decompressed ({reason or 'it ends too early'}); is it a whole "
        f"{path.suffix} file?"
    )
