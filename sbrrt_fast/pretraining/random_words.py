"""Random numbers as functions of (seed, use, round, row): a resumed run draws them again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MASKS, SENTENCES = 0, 1  # uses of the numbers, which are independent
TRAINING, HELD_OUT = 0, 2  # added to a use: independent numbers for text that is held out


@dataclass(frozen=True)
class RandomRows:
    """The random numbers of one round's rows, or of the held-out text.

    Attributes:
        seed: of the run. round: number of rounds done before; 0 of held-out text.
        kind: ``TRAINING`` or ``HELD_OUT``.
    """

    seed: int
    round: int = 0
    kind: int = TRAINING

    def words(self, use: int, row: int, count: int) -> NDArray[np.uint64]:
        """64 random bits each.

        Args:
            use: ``MASKS`` or ``SENTENCES``. row: its place in the round, or in the held-out text.
        """
        counter = [0, row, self.round, use + self.kind]  # of blocks; a row has 2^64 of them
        return np.random.Philox(key=[self.seed, 0], counter=counter).random_raw(count)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of random words."""
    return (words >> np.uint64(11)) * 2.0**-53


def below(words: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to ``bound - 1`` of random words."""
    return (uniform(words) * bound).astype(np.int64)
