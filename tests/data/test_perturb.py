"""Perturbations of texts: their definitions, and that they are the same every time."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from sbrrt_fast.data.perturb import (
    _NEIGHBOURS,
    PERTURBATION_NAMES,
    PERTURBATIONS,
    perturb_text,
)
from sbrrt_fast.errors import ConfigError

TEXT = "It 's a charming , often affecting journey of the mind -- don't miss it !"
WORDS = TEXT.split()


def many(name: str, text: str, rate: float, count: int = 3000) -> list[str]:
    """What becomes of a text, drawn ``count`` times."""
    return [perturb_text(text, name, rate=rate, seed=seed) for seed in range(count)]


def edits(word: str) -> dict[str, str]:
    """Every way to mistype a word, with its kind."""
    places = range(len(word))
    lost = {word[:i] + word[i + 1 :]: "lost" for i in places}
    doubled = {word[:i] + word[i] + word[i:]: "doubled" for i in places}
    beside = {
        word[:i] + key + word[i + 1 :]: "beside" for i in places for key in _NEIGHBOURS[word[i]]
    }
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :]: "swapped" for i in places[:-1]}
    return lost | doubled | beside | swapped


@pytest.mark.parametrize("name", PERTURBATION_NAMES)
def test_the_same_every_time_and_another_for_another_seed(name):
    texts = many(name, TEXT, 0.3, 50)
    assert texts == many(name, TEXT, 0.3, 50)
    assert name == "case" or len(set(texts)) > 40
    numbers = itertools.repeat(0.999)  # never below the rate
    assert name == "case" or PERTURBATIONS[name](TEXT, numbers.__next__, 0.9) == TEXT


@pytest.mark.parametrize("name", PERTURBATION_NAMES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_any_text_stays_one(name, rate):
    draw = random.Random(0)
    alphabet = "ab cde.,!?'\"- ß\u0130é你\u3000\t--"
    for seed in range(500):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(1, 20))) + "x"
        changed = perturb_text(text, name, rate=rate, seed=seed)
        assert changed.strip() and "\n" not in changed
        assert rate or name == "case" or changed == text
    for text in ("x", "!", "aaa", "你好吗", "..."):
        assert perturb_text(text, name, rate=rate, seed=1).strip()


def test_texts_stay_the_same_from_version_to_version():
    """Scores of perturbed texts can be compared with those of an earlier version."""
    expected = {
        "typos": "It 's a charming , often affecting ojurney of the mind -- don't miss it !",
        "case": "IT 'S A CHARMING , OFTEN AFFECTING JOURNEY OF THE MIND -- DON'T MISS IT !",
        "punctuation": "It; 's. a charming often affecting journey of- the mind - don't miss. it",
        "spaces": "It's a charming , often affecting jour ney of the min d -- don't miss it !",
        "word_drop": "It 's a , often journey of the -- miss it !",
        "word_order": "It a 's charming often , affecting journey of the -- mind don't miss it !",
    }
    assert expected.keys() == set(PERTURBATION_NAMES)
    for name, text in expected.items():
        assert perturb_text(TEXT, name, rate=0.3, seed="0/sst/dev/7/0") == text


def test_a_typo_is_one_mistake_in_a_word_of_three_letters():
    ways = edits("journey")
    changed = many("typos", "a of journey", 1.0)
    assert all(text.startswith("a of ") for text in changed)
    kinds = Counter(ways[text.split()[2]] for text in changed)
    assert set(kinds) == {"lost", "doubled", "beside", "swapped"}
    assert all(abs(count - 750) < 4 * (3000 * 3 / 16) ** 0.5 for count in kinds.values())
    assert len(set(changed)) == len(ways)  # every one of them, sooner or later


def test_typos_keep_case_and_what_is_no_letter():
    for text in many("typos", "ABC-12345", 1.0, 200):
        assert text.endswith("-12345") and text[:-6].isupper()
    for text in many("typos", "aaa 你你你 été", 1.0, 200):
        first, second, third = text.split()
        assert first in ("aa", "aaaa", "saa", "asa", "aas") and second in ("你你", "你你你你")
        assert third != "été"


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_rate_is_that_of_words(rate):
    text = " ".join(["journey"] * 1000)
    deviation = (1000 * rate * (1 - rate)) ** 0.5

    def is_near(count: int) -> bool:
        return abs(count - 1000 * rate) < 4 * deviation

    assert is_near(
        sum(word != "journey" for word in perturb_text(text, "typos", rate=rate).split())
    )
    assert is_near(1000 - len(perturb_text(text, "word_drop", rate=rate).split()))
    marked = perturb_text(text, "punctuation", rate=rate).split()
    assert is_near(sum(word != "journey" for word in marked))
    assert {word[-1] for word in marked if word != "journey"} <= set(",.;:!?-")
    unmarked = perturb_text(text.replace("journey", "."), "punctuation", rate=rate).split()
    assert is_near(1000 - len(unmarked))


def test_upper_case():
    assert perturb_text(TEXT, "case", rate=0.0) == TEXT.upper()


def test_spaces_move_and_nothing_else():
    changed = many("spaces", TEXT, 0.3, 200)
    assert all(text.replace(" ", "") == TEXT.replace(" ", "") for text in changed)
    assert {text == " ".join(text.split()) for text in changed} == {True}
    alone = Counter(many("spaces", "abcd", 0.5))
    assert set(alone) == {"abcd", "a bcd", "ab cd", "abc d"}
    assert abs(alone["abcd"] - 1500) < 4 * 750**0.5
    gaps = Counter(many("spaces", "a b", 0.2))
    assert set(gaps) == {"a b", "ab"} and abs(gaps["ab"] - 600) < 4 * 480**0.5


def test_marks_are_lost_and_given():
    lost = Counter(text.strip(",.;:!?-") for text in many("punctuation", "don't", 0.5))
    assert set(lost) == {"don't", "dont"} and abs(lost["dont"] - 1500) < 4 * 750**0.5
    given = Counter(text.removeprefix("go") for text in many("punctuation", "go", 0.7))
    assert set(given) == {"", *",.;:!?-"}
    assert all(abs(given[mark] - 300) < 4 * 270**0.5 for mark in ",.;:!?-")
    alone = Counter(many("punctuation", "go !", 0.5))
    assert {"go", "go !"} < set(alone)
    assert set(many("punctuation", "!", 1.0, 20)) == {"!"}  # nothing else would be left


def test_words_are_lost_but_never_all():
    for text in many("word_drop", TEXT, 0.5, 200):
        remaining = iter(WORDS)
        assert text and all(word in remaining for word in text.split())  # in their order
    assert set(many("word_drop", "one two three", 1.0, 100)) == {"one", "two", "three"}


def test_words_change_places_with_the_next():
    words = [str(i) for i in range(9)]
    for text in many("word_order", " ".join(words), 0.4, 200):
        changed = text.split()
        assert sorted(changed) == words
        assert all(abs(int(word) - i) <= 1 for i, word in enumerate(changed))
    assert perturb_text("1 2 3 4 5", "word_order", rate=1.0) == "2 1 4 3 5"


def test_names_and_rates_that_there_are_not():
    with pytest.raises(ConfigError, match="perturb: 'typo' is none of typos, case, "):
        perturb_text(TEXT, "typo")
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="perturb_rate: must be from 0 to 1, got"):
            perturb_text(TEXT, "typos", rate=rate)
