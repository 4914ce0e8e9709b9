"""The text of a pre-training run as token ids: lines, and rows of neighbouring lines.

A line is a text of a task, or a line of a text file; one that is longer than a sequence is several
lines. A row is what one sequence of a batch is made of. Rows of several lines can be split into two
segments, the second of which follows the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Corpus:
    """Tokens without [CLS] and [SEP].

    Attributes:
        tokens: int32 [num_tokens]. starts: int64 [num_lines + 1], offsets of the lines.
        rows: int64 [num_rows, 2], first line of each row and the one behind its last.
        documents: int64 [num_rows]: rows of one document have one number.
        sources: int64 [num_rows]: the file or task that a row is of.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    sources: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> NDArray[np.int32]:
        """The tokens of a line; a view."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def between(self, first: int, stop: int) -> NDArray[np.int32]:
        """The tokens of neighbouring lines; a view."""
        return self.tokens[self.starts[first] : self.starts[stop]]

    @cached_property
    def has_pair(self) -> NDArray[np.bool_]:
        """bool [num_rows], whether a row has two lines or more."""
        return self.rows[:, 1] - self.rows[:, 0] > 1

    @cached_property
    def pairs_by_source(self) -> dict[int, NDArray[np.int64]]:
        """The rows with two lines or more of each source, in order of their documents."""
        order = np.argsort(self.documents, kind="stable")
        order = order[self.has_pair[order]]
        return {int(s): order[self.sources[order] == s] for s in np.unique(self.sources)}

    def part(self, rows: NDArray[np.int64]) -> Corpus:
        """The corpus with these rows alone."""
        return Corpus(
            self.tokens, self.starts, self.rows[rows], self.documents[rows], self.sources[rows]
        )

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of all that training takes."""
        value = 0
        for array in (self.tokens, self.starts, self.rows, self.documents, self.sources):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
        return value


class CorpusBuilder:
    """Puts a corpus together, line by line.

    Args:
        max_line: tokens of the longest line; longer ones become several, of about equal length.
        max_row: tokens of the longest row.
    """

    def __init__(self, max_line: int, max_row: int):
        self.max_line, self.max_row = max_line, max_row
        self._pieces: list[NDArray[np.int32]] = []
        self._lengths: list[int] = []
        self._rows: list[tuple[int, int, int, int]] = []
        self._num_documents = 0

    def add_texts(self, texts: Iterable[Sequence[NDArray[np.int32]]], source: int) -> None:
        """Rows of one example each: a text, or the two of a pair as two lines."""
        for lines in texts:
            if len(lines) == 1:
                for line in self._pieces_of(lines[0]):
                    self._add_row([line], source)
            elif all(map(len, lines)):
                self._add_row(lines, source)
            self._num_documents += 1

    def add_document(self, lines: Iterable[NDArray[np.int32]], source: int) -> None:
        """Rows of as many neighbouring lines as there is room for."""
        held: list[NDArray[np.int32]] = []
        num_tokens = 0
        for line in lines:
            for piece in self._pieces_of(line):
                if held and num_tokens + len(piece) > self.max_row:
                    self._add_row(held, source)
                    held, num_tokens = [], 0
                held.append(piece)
                num_tokens += len(piece)
        if held:
            self._add_row(held, source)
        self._num_documents += 1

    def corpus(self) -> Corpus:
        """All that was added."""
        table = np.array(self._rows, dtype=np.int64).reshape(-1, 4)
        lengths = np.array([0, *self._lengths], dtype=np.int64)
        tokens = np.concatenate([np.empty(0, np.int32), *self._pieces])
        columns = table[:, :2], table[:, 2], table[:, 3]
        return Corpus(tokens, lengths.cumsum(), *map(np.ascontiguousarray, columns))

    def _add_row(self, lines: Sequence[NDArray[np.int32]], source: int) -> None:
        first = len(self._lengths)
        self._pieces += lines
        self._lengths += map(len, lines)
        self._rows.append((first, len(self._lengths), self._num_documents, source))

    def _pieces_of(self, line: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        if not len(line):
            return []
        return np.array_split(line, -(-len(line) // self.max_line))
