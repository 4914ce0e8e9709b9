"""Masks by their definition: shares over many draws, whole words, special tokens, repeats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.pretraining.masking import Masking
from sbrrt_fast.pretraining.random_words import HELD_OUT, RandomRows
from sbrrt_fast.pretraining.settings import MaskingConfig
from sbrrt_fast.pretraining.vocabulary import Vocabulary
from tests.helpers import SPECIAL, tiny_tokenizer

NUM_ROWS, LENGTH = 400, 100


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    return Vocabulary.of(tiny_tokenizer(), tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def rows(vocabulary) -> list[np.ndarray]:
    """Rows of random pieces between [CLS] and [SEP], a third of them within a word."""
    draw = np.random.default_rng(0)
    inner = vocabulary.words[vocabulary.continues[vocabulary.words]]
    outer = vocabulary.words[~vocabulary.continues[vocabulary.words]]
    made = []
    for _ in range(NUM_ROWS):
        is_inner = draw.random(LENGTH) < 1 / 3
        text = np.where(is_inner, draw.choice(inner, LENGTH), draw.choice(outer, LENGTH))
        ids = [[vocabulary.cls], text[: LENGTH // 2], [vocabulary.sep], text[LENGTH // 2 :]]
        made.append(np.concatenate([*ids, [vocabulary.sep]]).astype(np.int32))
    return made


def masked(vocabulary, rows, round: int = 0, **fields) -> tuple[np.ndarray, np.ndarray]:
    """(seen, chosen) of all rows."""
    masking, random_rows = Masking(MaskingConfig(**fields), vocabulary), RandomRows(3, round)
    found = [masking(ids, random_rows, place) for place, ids in enumerate(rows)]
    return np.stack([seen for seen, _ in found]), np.stack([chosen for _, chosen in found])


def five_sigma(share: float, count: int) -> float:
    """Bound on a binomial share's distance from its probability."""
    return 5 * (share * (1 - share) / count) ** 0.5


@pytest.mark.parametrize("fields", [{}, {"share": 0.4, "mask": 0.5, "random": 0.3}])
def test_shares_are_those_of_the_settings(vocabulary, rows, fields):
    config = MaskingConfig(**fields)
    seen, chosen = masked(vocabulary, rows, **fields)
    ids = np.stack(rows)
    is_text = ~vocabulary.is_special[ids]
    count = is_text.sum()
    assert abs(chosen[is_text].mean() - config.share) < five_sigma(config.share, count)
    assert (seen == ids)[~chosen].all()
    seen, ids = seen[chosen], ids[chosen]
    is_mask, count = seen == vocabulary.mask, len(seen)
    assert abs(is_mask.mean() - config.mask) < five_sigma(config.mask, count)
    is_other = ~is_mask & (seen != ids)  # a random token may be the same one
    expected = config.random * (1 - 1 / len(vocabulary.words))
    assert abs(is_other.mean() - expected) < five_sigma(config.random, count)
    assert not vocabulary.is_special[seen[is_other]].any()


def test_random_tokens_are_all_words_alike(vocabulary, rows):
    seen, chosen = masked(vocabulary, rows, share=0.99, mask=0.0, random=1.0)
    counts = np.bincount(seen[chosen], minlength=vocabulary.size)[vocabulary.words]
    mean = counts.sum() / len(counts)
    assert counts.min() > 0 and abs(counts - mean).max() < 6 * mean**0.5


def test_special_tokens_are_never_chosen(vocabulary, rows):
    literal = [np.insert(ids, 4, vocabulary.sep) for ids in rows]  # as a text may have it
    _, chosen = masked(vocabulary, literal, share=0.99)
    assert not chosen[vocabulary.is_special[np.stack(literal)]].any()
    tokenizer = tiny_tokenizer()
    special = set(np.flatnonzero(vocabulary.is_special))
    assert special == {tokenizer.token_to_id(token) for token in SPECIAL}


def test_whole_words_are_chosen_together_and_as_often(vocabulary, rows):
    _, chosen = masked(vocabulary, rows, whole_words=True)
    ids = np.stack(rows)
    follows = vocabulary.continues[ids[:, 1:]] & ~vocabulary.is_special[ids[:, :-1]]
    assert (chosen[:, 1:] == chosen[:, :-1])[follows].all()
    is_text = ~vocabulary.is_special[ids]
    is_first = is_text.copy()
    is_first[:, 1:] &= ~follows
    assert abs(chosen[is_first].mean() - 0.15) < five_sigma(0.15, is_first.sum())
    apart = masked(vocabulary, rows)[1]
    assert not (apart[:, 1:] == apart[:, :-1])[follows].all()


def test_masks_are_a_function_of_seed_round_and_row(vocabulary, rows):
    first, again = masked(vocabulary, rows), masked(vocabulary, rows)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first[1], masked(vocabulary, rows, round=1)[1])
    masking = Masking(MaskingConfig(), vocabulary)
    alone = masking(rows[7], RandomRows(3), 7)  # without the rows before it
    assert np.array_equal(alone[1], first[1][7])
    for other in (RandomRows(4), RandomRows(3, 0, HELD_OUT)):
        assert not np.array_equal(masking(rows[7], other, 7)[1], alone[1])
    assert not np.array_equal(masking(rows[7], RandomRows(3), 8)[1], alone[1])


def test_without_a_mask_token_nothing_can_be_masked(tmp_path):
    vocabulary = {token: i for i, token in enumerate(("[UNK]", "[CLS]", "[SEP]", "a"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    with pytest.raises(WeightsError, match="has no mask token"):
        Vocabulary.of(tokenizer, tmp_path)


def test_whole_words_need_pieces_that_are_marked(vocabulary):
    with pytest.raises(ConfigError, match=r"masking\.whole_words: needs a WordPiece tokenizer"):
        Masking(MaskingConfig(whole_words=True), replace(vocabulary, continues=None))
