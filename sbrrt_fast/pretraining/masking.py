"""Masked words: which tokens are to be predicted, and what the encoder sees in their place.

Each token of a text, or each word with ``whole_words``, is chosen with probability ``share``. Of
the chosen tokens 80% become the mask token, 10% a random one, and 10% stay (arXiv 1810.04805,
3.1). The masks of a row depend on (seed, round, row) alone, so a text has others every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.pretraining.random_words import MASKS, RandomRows, below, uniform
from sbrrt_fast.pretraining.settings import MaskingConfig
from sbrrt_fast.pretraining.vocabulary import Vocabulary


@dataclass(frozen=True)
class Masking:
    """Masks the tokens of one row after the other.

    Attributes:
        config: shares. vocabulary: of the tokenizer.

    Raises:
        ConfigError: whole words are asked for, and the tokenizer does not say what they are.
    """

    config: MaskingConfig
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        if self.config.whole_words and self.vocabulary.continues is None:
            raise ConfigError(
                "masking.whole_words: needs a WordPiece tokenizer, which marks the pieces of a "
                "word; leave it out"
            )

    def __call__(
        self,
        ids: NDArray[np.int32],
        random_rows: RandomRows,
        row: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """What the encoder sees of a row, and which of its tokens are to be predicted.

        Args:
            ids: [num_tokens]. row: its place, see ``RandomRows``.
        """
        count, is_special = len(ids), self.vocabulary.is_special[ids]
        words = random_rows.words(MASKS, row, 3 * count).reshape(3, count)
        chosen = self._chosen(ids, is_special, uniform(words[0]))
        place, seen = uniform(words[1]), ids.copy()
        to_mask = chosen & (place < self.config.mask)
        to_draw = chosen & ~to_mask & (place < self.config.mask + self.config.random)
        seen[to_mask] = self.vocabulary.mask
        drawn = self.vocabulary.words
        seen[to_draw] = drawn[below(words[2][to_draw], len(drawn))]
        return seen, chosen

    def _chosen(
        self, ids: NDArray[np.int32], is_special: NDArray[np.bool_], draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        if self.config.whole_words:  # the draw of a word's first piece is that of all
            is_first = is_special | ~self.vocabulary.continues[ids]
            is_first[1:] |= is_special[:-1]  # a piece of a text may begin within a word
            draws = draws[np.flatnonzero(is_first)[is_first.cumsum() - 1]]
        return ~is_special & (draws < self.config.share)
