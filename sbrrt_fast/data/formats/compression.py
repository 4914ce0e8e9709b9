"""Files as their bytes were before they were compressed, by ending: .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sbrrt_fast.data.formats.optional import import_optional
from sbrrt_fast.errors import DataError


def _open_zstandard(file: BinaryIO) -> BinaryIO:
    zstandard = import_optional("zstandard", "zst", "a .zst file")
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)


_OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstandard,
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
