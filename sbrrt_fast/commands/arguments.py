"""The arguments of a command: a dataclass that tyro fills, with mistakes in one line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TypeVar

import tyro

from sbrrt_fast.config_cli import one_line
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

Arguments = TypeVar("Arguments")


def parse_arguments(cls: type[Arguments], argv: Sequence[str], prog: str) -> Arguments:
    """``cls`` filled from the command line; ``--help`` prints its docstrings and exits.

    Raises:
        ConfigError: an argument is unknown, missing or cannot be used.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(cls, prog=prog, args=list(argv), config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        mistake = one_line(messages.getvalue()).replace(f" from {prog}:", ":").rstrip(".")
        raise ConfigError(f"{shown(mistake, 300)}; see `{prog} --help`") from None
