"""What masking knows of a tokenizer's ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from sbrrt_fast.data.tokenizer_settings import read_settings
from sbrrt_fast.errors import WeightsError

_MASK = "[MASK]"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a tokenizer.

    Attributes:
        size: ids are below it. mask, cls, sep: the ids of these tokens.
        is_special: bool [size], True at special tokens, which are never masked.
        words: int64, the ids of all others, which may replace a masked one.
        continues: bool [size], True where a token goes on with the word of the one before it; None
            where the tokenizer does not say it.
    """

    size: int
    mask: int
    cls: int
    sep: int
    is_special: NDArray[np.bool_]
    words: NDArray[np.int64]
    continues: NDArray[np.bool_] | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, folder: Path) -> Vocabulary:
        """The vocabulary of the tokenizer that was loaded from a folder.

        Raises:
            WeightsError: it has no mask token.
        """
        ids = tokenizer.get_vocab()
        mask = read_settings(folder).content("mask") or _MASK
        if mask not in ids:
            raise WeightsError(
                f"{folder}: the tokenizer has no mask token {mask}, without which no word can be "
                "masked; pre-train another checkpoint, or add the token to its vocabulary"
            )
        first, *_, last = tokenizer.encode("a").ids
        added = tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        is_special = np.zeros(max(ids.values()) + 1, dtype=np.bool_)
        is_special[[*special, ids[mask], first, last]] = True
        words = np.unique(np.fromiter(ids.values(), np.int64))
        words = words[~is_special[words]]
        continues = _continues(tokenizer, ids, len(is_special))
        return cls(len(is_special), ids[mask], first, last, is_special, words, continues)


def _continues(tokenizer: Tokenizer, ids: dict[str, int], size: int) -> NDArray[np.bool_] | None:
    model = tokenizer.model
    if not isinstance(model, models.WordPiece):
        return None
    table = np.zeros(size, dtype=np.bool_)
    prefix = model.continuing_subword_prefix
    table[[number for token, number in ids.items() if token.startswith(prefix)]] = True
    return table


def check_pairs(tokenizer: Tokenizer, vocabulary: Vocabulary, num_types: int, where: Path) -> None:
    """The tokenizer puts two texts together as BERT does, and the encoder has types for them.

    Raises:
        WeightsError: naming the folder ``where``.
    """
    one, two = tokenizer.encode("a").ids[1:-1], tokenizer.encode("a", "a")
    expected = [vocabulary.cls, *one, vocabulary.sep, *one, vocabulary.sep]
    types = [0] * (len(one) + 2) + [1] * (len(one) + 1)
    if two.ids != expected or two.type_ids != types or num_types < 2:
        raise WeightsError(
            f"{where}: next_sentence needs [CLS] a [SEP] b [SEP] with token types 0 and 1, which "
            "tokenizer or encoder do not have; leave next_sentence out"
        )
