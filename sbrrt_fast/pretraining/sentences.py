"""Rows of a corpus as the segments of a sequence: one text, or two that may belong together.

With ``next_sentence`` a row of two lines or more becomes two segments. The second one follows the
first in the row, or, with probability 1/2, comes from another document of the same source. Where a
row is split, and which other row is taken, depends on (seed, round, row) alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbrrt_fast.errors import DataError
from sbrrt_fast.pretraining.corpus import Corpus
from sbrrt_fast.pretraining.random_words import SENTENCES, RandomRows, below, uniform

IS_NEXT, IS_RANDOM = 0, 1  # as in transformers


class Segments(NamedTuple):
    """What a sequence is made of: int32 tokens of one or two segments.

    ``label`` is ``IS_NEXT`` or ``IS_RANDOM``; None of one segment.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32] | None = None
    label: int | None = None


class Sentences:
    """The rows of a corpus as segments.

    Args:
        corpus: the text. max_tokens: of a sequence, without special tokens.
        next_sentence: whether rows become two segments.

    Raises:
        DataError: with ``next_sentence``, no two documents of one source have a row of two lines.
    """

    def __init__(self, corpus: Corpus, max_tokens: int, next_sentence: bool):
        self.corpus, self.max_tokens, self.next_sentence = corpus, max_tokens, next_sentence
        self._others = {s: rows for s, rows in self._pairs().items() if self._is_enough(rows)}
        if next_sentence and not self._others:
            raise DataError(
                "next_sentence: needs text in which sentences follow one another, in two documents "
                "at least: a task of pairs such as para or sts, or text files with blank lines "
                "between documents; leave it out with other text"
            )

    def row(self, index: int, random_rows: RandomRows, row: int) -> Segments:
        """The segments of row ``index`` of the corpus, at place ``row`` of the round."""
        first, stop = self.corpus.rows[index].tolist()
        others = self._others.get(int(self.corpus.sources[index]))
        if others is None or stop - first < 2:
            return Segments(self.corpus.between(first, stop)[: self.max_tokens])
        words = random_rows.words(SENTENCES, row, 4)
        split = first + 1 + int(below(words[0], stop - first - 1))
        one, two, label = self.corpus.between(first, split), (split, stop), IS_NEXT
        if uniform(words[1]) < 0.5:
            two, label = self._second_of(self._other(index, others, words[2]), words[3]), IS_RANDOM
        return Segments(*trimmed(one, self.corpus.between(*two), self.max_tokens), label)

    def _pairs(self) -> dict[int, NDArray[np.int64]]:
        return self.corpus.pairs_by_source if self.next_sentence else {}

    def _is_enough(self, rows: NDArray[np.int64]) -> bool:
        documents = self.corpus.documents[rows]
        return len(rows) > 1 and documents[0] != documents[-1]

    def _other(self, index: int, others: NDArray[np.int64], word: np.uint64) -> int:
        """A row of another document; ``others`` are in order of their documents."""
        documents = self.corpus.documents[others]
        own = self.corpus.documents[index]
        first, stop = np.searchsorted(documents, own), np.searchsorted(documents, own, "right")
        drawn = int(below(word, len(others) - (stop - first)))
        return int(others[drawn if drawn < first else drawn + stop - first])

    def _second_of(self, index: int, word: np.uint64) -> tuple[int, int]:
        """The lines of a row behind a place where it is split."""
        first, stop = self.corpus.rows[index].tolist()
        return first + 1 + int(below(word, stop - first - 1)), stop


def trimmed(
    first: NDArray[np.int32], second: NDArray[np.int32], most: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Two segments without the last tokens of the longer one, so that they have ``most`` tokens."""
    if len(first) + len(second) <= most:
        return first, second
    of_first = max(most - len(second), min(len(first), most - most // 2))
    return first[:of_first], second[: most - min(of_first, len(first))]
