"""Text files of any size: checked as a whole first, then read line by line in bounded memory."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from sbrrt_fast.data.formats.compression import open_bytes
from sbrrt_fast.errors import DataError

MAX_LINE = 4_000_000  # characters; a row with more is not of a table of sentences
_CHUNK = 1 << 20


def check_text_file(path: Path) -> None:
    """Reads the whole file once, in pieces.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is no regular file, cannot be read or decompressed, is empty, is not UTF-8 or
            holds a NUL; the last three name the line.
    """
    with open_bytes(path) as file:
        problem = _first_problem(file)
    if problem is not None:
        offset, text = problem
        with open_bytes(path) as file:
            raise DataError(f"{path}:{_line_at(file, offset)}: {text}")


def open_text(file: BinaryIO) -> TextIO:
    """The text of a checked file, to be closed; lines keep the line breaks that end them."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def read_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text opened with ``newline=""``, with the line breaks that end them.

    Raises:
        DataError: a line has more than 4,000,000 characters.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(
                f"{path}:{number}: a line of more than {MAX_LINE:,} characters; is this a file of "
                "rows with texts?"
            )
        yield line


def _first_problem(file: BinaryIO) -> tuple[int, str] | None:
    """Offset of the first byte that cannot be used, and why; the file is empty at offset 0."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, is_empty = 0, True
    while True:
        chunk = file.read(_CHUNK)
        num_pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return offset - num_pending + error.start, "not UTF-8; save the file as UTF-8 text"
        if (nul := chunk.find(b"\0")) >= 0:
            return offset + nul, "a NUL byte; is this really a text file?"
        is_empty = is_empty and not text.strip("\ufeff").strip()
        if not chunk:
            break
        offset += len(chunk)
    return (0, "the file is empty; it needs a header line and rows") if is_empty else None


def _line_at(file: BinaryIO, offset: int) -> int:
    """Number of the line that holds the byte at ``offset``, of a file at its start."""
    line, after_return = 1, False
    while offset > 0 and (chunk := file.read(min(_CHUNK, offset))):
        offset -= len(chunk)
        line += chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
        line -= after_return and chunk.startswith(b"\n")
        after_return = chunk.endswith(b"\r")
    return line
