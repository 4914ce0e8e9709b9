"""Many short texts as two arrays: a Python string each would cost more than the texts."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_PER_PIECE = 4096  # texts that are decoded together


class StringArray(Sequence[str]):
    """UTF-8 texts end to end; a string is made when it is asked for.

    Args:
        text: uint8, all of them.
        starts: [len + 1] int64 offsets into ``text``.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray):
        self._text, self._starts = text, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = _checked(index, len(self))
        return str(self._text[self._starts[number] : self._starts[number + 1]].data, "utf-8")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _PER_PIECE):
            starts = self._starts[first : first + _PER_PIECE + 1].tolist()
            piece = self._text[starts[0] : starts[-1]].tobytes()
            for begin, end in itertools.pairwise(starts):
                yield piece[begin - starts[0] : end - starts[0]].decode("utf-8")


class TextRows(Sequence[tuple[str, ...]]):
    """Rows of as many texts each, of strings that follow each other."""

    def __init__(self, strings: StringArray, num_columns: int):
        self._strings, self._num_columns = strings, num_columns

    def __len__(self) -> int:
        return len(self._strings) // self._num_columns

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = _checked(index, len(self)) * self._num_columns
        return tuple(self._strings[first : first + self._num_columns])

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return zip(*[iter(self._strings)] * self._num_columns, strict=True)


def _checked(index: int, length: int) -> int:
    number = operator.index(index)
    number += length if number < 0 else 0
    if not 0 <= number < length:
        raise IndexError(f"row {index} of {length}")
    return number
