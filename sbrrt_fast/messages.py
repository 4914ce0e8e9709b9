"""User data in messages: without control characters, and not longer than one can read."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: object) -> str:
    """``str(text)`` on one line: characters that do not print are escaped, as in ``\\x1b``."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def shown(text: object, limit: int = 80) -> str:
    """``printable(text)``, cut after ``limit`` characters; what is cut says how long it was."""
    text = str(text)
    if len(text) <= limit:
        return printable(text)
    return f"{printable(text[:limit])}… ({len(text):,} characters)"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines with their cells one under another."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, wide, strict=True)).rstrip()
        for row in rows
    ]


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
