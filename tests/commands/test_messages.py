"""User data in messages and errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbrrt_fast import errors
from sbrrt_fast.messages import printable, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 'text' é 字", "plain 'text' é 字"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("right\u202eleft\u200b\u2028", "right\\u202eleft\\u200b\\u2028"),
        ("half \ud800", "half \\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_does_not_print_is_escaped(text, expected):
    assert printable(text) == expected


def test_long_values_are_cut_and_say_so():
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 81) == "x" * 80 + "… (81 characters)"
    assert shown("\n" * 2000, limit=3) == "\\n\\n\\n… (2,000 characters)"


@given(st.text(), st.integers(0, 50))
def test_any_value_is_one_bounded_line(text, limit):
    assert shown(text, limit).isprintable()
    assert len(shown(text, limit)) <= 10 * limit + 30


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "WeightsError", "BackendError"])
def test_every_error_is_one_line(name):
    error = getattr(errors, name)("a\nb\x1b[0m")
    assert str(error) == "a\\nb\\x1b[0m"
    assert isinstance(error, errors.SbrrtError)
