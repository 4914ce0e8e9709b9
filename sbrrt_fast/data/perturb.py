"""Texts as people mistype them, which mean what they meant: to measure how robust a model is.

Each perturbation is a function of a text, numbers drawn uniformly from [0, 1), and a rate: the
probability that a word, a mark or a gap between words is changed. Words are what stands between
spaces. A text keeps a visible character, and one in which nothing was changed is the same string.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar, get_args

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

Perturbation = Literal["typos", "case", "punctuation", "spaces", "word_drop", "word_order"]
Draw = Callable[[], float]
T = TypeVar("T")

PERTURBATION_NAMES: tuple[Perturbation, ...] = get_args(Perturbation)
RATE, SEED = 0.1, 0  # where nothing else is said
_LETTERS = re.compile(r"[^\W\d_]{3,}")  # shorter words stay
_MARKS = ",.;:!?-"
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    key: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in _KEYS for i, key in enumerate(row)
}


def perturb_text(
    text: str, perturbation: Perturbation, *, rate: float = RATE, seed: int | str = SEED
) -> str:
    """A text with some mistakes; the same for the same arguments, on every machine.

    Args:
        perturbation: one of ``PERTURBATION_NAMES``.
        rate: from 0 to 1, the probability that a word, mark or gap is changed.
        seed: of what is drawn; give every text another one.

    Raises:
        ConfigError: there is no such perturbation, or the rate is none.
    """
    check_perturbations([perturbation], rate)
    draw = random.Random(f"{perturbation}/{seed}").random  # the same from version to version
    return PERTURBATIONS[perturbation](text, draw, rate)


def check_perturbations(names: Iterable[str], rate: float) -> None:
    """Raises ConfigError for a name that is no perturbation, and a rate that is no probability."""
    for name in names:
        if name not in PERTURBATION_NAMES:
            known = ", ".join(PERTURBATION_NAMES)
            raise ConfigError(f"perturb: '{shown(name)}' is none of {known}")
    if not 0 <= rate <= 1:
        raise ConfigError(f"perturb_rate: must be from 0 to 1, got {rate!r}")


def typos(text: str, draw: Draw, rate: float) -> str:
    """In words of three letters or more: one letter lost, doubled, hit beside its key, or two
    neighbours swapped. The first and every other letter may be the one."""

    def typed(match: re.Match[str]) -> str:
        word = match[0]
        return _mistyped(word, draw) if draw() < rate else word

    return _LETTERS.sub(typed, text)


def case(text: str, draw: Draw, rate: float) -> str:
    """All in upper case, whatever the rate."""
    return text.upper()


def punctuation(text: str, draw: Draw, rate: float) -> str:
    """Marks lost, and others put behind words that end without one."""

    def marked(word: str) -> str:
        kept = "".join(c for c in word if not (_is_mark(c) and draw() < rate))
        is_given = not _is_mark(word[-1]) and draw() < rate
        return kept + _one_of(_MARKS, draw) if is_given else kept

    words = text.split()
    changed = [word for word in map(marked, words) if word]
    return _joined(text, words, changed) if changed else text


def spaces(text: str, draw: Draw, rate: float) -> str:
    """Spaces lost between words, and put into words."""

    def parted(word: str) -> str:
        if len(word) < 2 or draw() >= rate:
            return word
        place = 1 + int(draw() * (len(word) - 1))
        return f"{word[:place]} {word[place:]}"

    words = text.split()
    changed = [parted(word) for word in words]
    for i in range(len(changed) - 1, 0, -1):
        if draw() < rate:
            changed[i - 1 : i + 1] = [changed[i - 1] + changed[i]]
    return _joined(text, words, changed)


def word_drop(text: str, draw: Draw, rate: float) -> str:
    """Words lost; one always stays."""
    words = text.split()
    kept = [word for word in words if draw() >= rate]
    return _joined(text, words, kept or [_one_of(words, draw)])


def word_order(text: str, draw: Draw, rate: float) -> str:
    """Words swapped with the next one; a word moves by one place at most."""
    words = text.split()
    changed, i = list(words), 0
    while i < len(words) - 1:
        if draw() < rate:
            changed[i : i + 2] = changed[i + 1], changed[i]
            i += 1
        i += 1
    return _joined(text, words, changed)


PERTURBATIONS: dict[Perturbation, Callable[[str, Draw, float], str]] = {
    "typos": typos,
    "case": case,
    "punctuation": punctuation,
    "spaces": spaces,
    "word_drop": word_drop,
    "word_order": word_order,
}


def _mistyped(word: str, draw: Draw) -> str:
    """The word with one mistake, each kind that it can have being as likely; never the word."""
    beside = [i for i, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]
    unequal = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    places = {"lost": range(len(word)), "doubled": range(len(word))}
    places |= {"beside": beside, "swapped": unequal}
    kind = _one_of([kind for kind, found in places.items() if found], draw)
    i = _one_of(places[kind], draw)
    if kind == "swapped":
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    typed = {"lost": "", "doubled": word[i] * 2}
    return word[:i] + (typed[kind] if kind in typed else _key_beside(word[i], draw)) + word[i + 1 :]


def _key_beside(letter: str, draw: Draw) -> str:
    """A neighbour in its row of an English keyboard, in the letter's case."""
    key = _one_of(_NEIGHBOURS[letter.lower()], draw)
    return key.upper() if letter.isupper() else key


def _one_of(values: Sequence[T], draw: Draw) -> T:
    return values[int(draw() * len(values))]


def _joined(text: str, words: list[str], changed: list[str]) -> str:
    return text if changed == words else " ".join(changed)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "P"
