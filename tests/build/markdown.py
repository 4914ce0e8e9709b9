"""The fenced blocks and the commands of a Markdown file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (?:.*\\\n +)*.*", re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")


class Block(NamedTuple):
    """A fenced block: its language, empty where none is given, and its text."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block for the shell."""
        return commands_of(self.text)


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a file in order."""
    return [Block(*found) for found in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def commands_of(text: str) -> list[str]:
    """Lines of shell without comments, continued lines joined and ``a && b`` split."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.sub(r"\s+#\s.*", "", line).split(" && ")]
    return [" ".join(part.split()) for part in parts if part.strip()]


def all_commands(path: Path, program: str) -> list[str]:
    """Every command of a program in a file: in fenced, indented and inline code, once each."""
    text = path.read_text(encoding="utf-8")
    fenced = [c for block in blocks_of(path) for c in block.commands]
    prose = _BLOCK.sub("", text)
    indented = [c for found in _INDENTED.findall(prose) for c in commands_of(found)]
    inline = [" ".join(code.split()) for code in _INLINE.findall(_INDENTED.sub("", prose))]
    found = dict.fromkeys([*fenced, *indented, *inline])
    return [command for command in found if program_of(command) == program]


def program_of(command: str) -> str:
    """The program that a command calls, without folder and variables; empty if it is none."""
    try:
        words = [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]
    except ValueError:
        return ""
    return words[0].rpartition("/")[2] if words else ""
