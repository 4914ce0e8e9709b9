"""The arguments of a command: a dataclass that tyro fills, with mistakes in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from sbrrt_fast.config_cli import run_tyro
from sbrrt_fast.errors import ConfigError


def parse_arguments(cls: type, argv: Sequence[str], prog: str, **options: Any) -> Any:
    """``cls`` filled from the command line; ``--help`` prints its docstrings and exits.

    Args:
        options: of ``tyro.cli``; with ``return_unknown_args=True`` the result is (``cls`` filled,
            the other arguments).

    Raises:
        ConfigError: an argument is unknown, missing or cannot be used.
    """
    try:
        return run_tyro(cls, argv, prog, config=(tyro.conf.FlagCreatePairsOff,), **options)
    except ConfigError as error:
        mistake = str(error).replace(f" from {prog}:", ":").rstrip(".")
        raise ConfigError(f"{mistake}; see `{prog} --help`") from None
