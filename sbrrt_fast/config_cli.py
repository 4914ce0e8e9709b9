"""Run configurations from the command line: ``--config FILE``, and any field as a flag over it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import did_you_mean, known_keys
from sbrrt_fast.config_help import help_topic, print_help
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.recipe_files import recipe_path


def parse_cli(argv: Sequence[str], base: RunConfig, prog: str = "sbrrt-fast train") -> RunConfig:
    """``base`` with the flags of ``argv`` on top: ``--rounds 10 --optimizer.learning-rate 3e-5``.

    Every field is a flag under its dotted key; ``--backbone`` is ``--model.backbone``.
    ``--epochs`` without ``--rounds`` puts aside the ``rounds`` of ``base``. ``--help`` prints all
    flags and exits.

    Raises:
        ConfigError: an unknown flag (with the nearest known one), or a value that cannot be used.
    """
    if _is_given("--epochs", argv) and not _is_given("--rounds", argv):
        base = dataclasses.replace(base, rounds=None)
    flags, unknown = run_tyro(
        _RunFlags,
        [re.sub("^--backbone(?==|$)", "--model.backbone", token) for token in argv],
        prog,
        description="Train with --config FILE (YAML) and any of these flags over it; --backbone "
        "is --model.backbone.",
        default=_RunFlags(**vars(base)),
        return_unknown_args=True,
    )
    if unknown:
        _raise_unknown(unknown, base)
    return RunConfig(**vars(flags))


class _RunFlags(RunConfig):
    """What tyro fills: it checks nothing, so that mistakes are told in our words."""

    def __post_init__(self) -> None:
        pass


def parse_run_config(argv: Sequence[str], prog: str) -> RunConfig:
    """The configuration of a command line: ``--config`` first, then flags over it.

    ``--help`` and ``--help GROUP`` print flags with the values of ``--config`` and exit.

    Raises:
        ConfigError: see ``load_config`` and ``parse_cli``.
    """
    path, flags = split_config_flag(argv)
    base = load_config(path)
    if (topic := help_topic(flags)) is not None:
        print_help(topic, base, prog)
        raise SystemExit(0)
    return parse_cli(flags, base, prog)


def split_config_flag(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of ``--config FILE``, ``--config=FILE`` or ``--config RECIPE``; other arguments.

    Raises:
        ConfigError: it is given twice or without a value, or there is no such recipe.
    """
    paths, rest, remaining = [], [], iter(argv)
    for argument in remaining:
        if argument == "--config":
            paths.append(next(remaining, ""))
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if len(paths) > 1 or "" in paths:
        raise ConfigError(
            "--config: give one YAML file or recipe, such as --config mine.yaml or --config sbrrt"
        )
    return (config_path(paths[0]) if paths else None), rest


def config_path(text: str) -> Path:
    """The file that ``--config`` names: a path, or a recipe that comes with the package.

    A word without folder and ending is a recipe, unless a file of that name is there.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(text)
    if path.suffix or text != path.name:
        return path
    if path.is_file():
        print(f"--config: {path} is the file here, not a recipe of that name")
        return path
    try:
        return recipe_path(text)
    except ConfigError as error:
        raise ConfigError(f"--config: {error}; a file needs an ending, such as .yaml") from None


def run_tyro(cls: type, argv: Sequence[str], prog: str, **options: Any) -> Any:
    """``tyro.cli`` with its mistakes as errors; ``--help`` prints and exits.

    Raises:
        ConfigError: the sentence of tyro's message.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(cls, args=list(argv), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ConfigError(shown(one_line(messages.getvalue()), 300)) from None


def one_line(box: str) -> str:
    """The sentence in tyro's message box, without frame, colours, help text and footer."""
    title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()
    sentence: list[str] = []
    for line in lines:
        text = line.strip("│ ")
        is_rule = re.match(r"[─╰-]{3}", text) is not None
        if sentence and (is_rule or text.startswith("Got errors")):
            break
        if not is_rule:
            sentence.append(text)
    return " ".join(" ".join(sentence or [title]).split())


def _raise_unknown(unknown: Sequence[str], base: RunConfig) -> NoReturn:
    flag = next((token for token in unknown if token.startswith("-")), None)
    if flag is None:
        argument = shown(unknown[0])
        raise ConfigError(f"unexpected argument '{argument}'; settings are flags, see --help")
    key = flag.partition("=")[0].lstrip("-").replace("-", "_")
    hint = did_you_mean(key, known_keys(base))
    hint = re.sub(r"'(.*)'", lambda match: f"'--{match[1].replace('_', '-')}'", hint)
    raise ConfigError(f"unknown flag '{shown(flag.partition('=')[0])}'{hint or '; see --help'}")


def flag_value(flag: str, argv: Sequence[str]) -> str | None:
    """The last value of ``--flag VALUE`` or ``--flag=VALUE``, or None."""
    values = [token.partition("=")[2] for token in argv if token.startswith(f"{flag}=")]
    values += [value for token, value in itertools.pairwise(argv) if token == flag]
    return values[-1] if values else None


def _is_given(flag: str, argv: Sequence[str]) -> bool:
    return any(token == flag or token.startswith(f"{flag}=") for token in argv)
