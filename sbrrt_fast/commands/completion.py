"""``sbrrt-fast completion``: a script that completes commands and flags in a shell."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, Union

import tyro
from tyro.conf import Positional

from sbrrt_fast import cli
from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_help import described
from sbrrt_fast.recipe_files import recipe_names

PROG = "sbrrt-fast"
SHELLS = ("bash", "zsh", "fish")
TAKE_ALL_FLAGS = ("train", "compare", "reproduce")  # those of a run's configuration
# Shells hand the script's record of all flags to a process as one argument, of limited length: help
# texts are cut to so many characters, and what has its default in the record is left out.
_LONGEST = 60
_DEFAULTS = re.compile(r", 'cascade': False|, 'nargs': (?:None|1)(?=[,}])")
_FUNCTION = "_tyro_sbrrt_fast"  # as tyro calls it


@dataclass(frozen=True)
class CompletionArguments:
    """Print a script that completes commands, flags and their values with Tab.

    For the shell at hand: source <(sbrrt-fast completion bash). For good, write it to
    ~/.local/share/bash-completion/completions/sbrrt-fast, a folder in zsh's fpath as _sbrrt-fast,
    or ~/.config/fish/completions/sbrrt-fast.fish.

    Attributes:
        shell: whose script.
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="SHELL")]


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(CompletionArguments, argv, f"{PROG} completion")
    print(script(arguments.shell))
    return 0


def script(shell: str) -> str:
    """The script of a shell: tyro's, which also completes recipes and file names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(_commands(), args=["--tyro-write-completion", shell, "-"], prog=PROG)
    own = text.getvalue().rstrip().removesuffix(_CALL.get(shell, "")).rstrip()
    return _DEFAULTS.sub("", own) + _ADDED[shell].replace("RECIPES", " ".join(recipe_names()))


def _commands() -> type:
    """A union of all commands, as tyro takes them."""
    kinds = [_command(name, arguments_of(name)) for name in cli.COMMANDS if name != "completion"]
    kinds.append(_command("completion", _choice("Shell", SHELLS)))
    kinds.append(_command(cli.HELP, _choice("Command", tuple(cli.COMMANDS))))
    return Union[tuple(kinds)]  # noqa: UP007 - made of a tuple


def arguments_of(name: str) -> type:
    """A dataclass with everything that a command takes."""
    own = _own_dataclass(importlib.import_module(cli.COMMANDS[name][0]))
    fields = [] if own is None else _fields_of(own)
    if name in TAKE_ALL_FLAGS:
        taken = {field for field, _, _ in fields}
        run = [_CONFIG, _BACKBONE, *_fields_of(RunConfig)]
        fields += [field for field in run if field[0] not in taken]
    return dataclasses.make_dataclass(name.title(), fields, kw_only=True)


def _own_dataclass(module: ModuleType) -> type | None:
    """The arguments that a command's module parses: of those it knows, the most special ones."""
    named = {v for name, v in vars(module).items() if name.endswith(("Arguments", "Options"))}
    kinds = [kind for kind in named if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    kinds.sort(key=lambda kind: len(kind.__mro__))
    return kinds[-1] if kinds else None


def _fields_of(cls: type) -> list[tuple]:
    fields = dataclasses.fields(described(cls, _LONGEST))
    return [
        (f.name, f.type, dataclasses.field(default=f.default, default_factory=f.default_factory))
        for f in fields
    ]


_CONFIG = ("config", Annotated[Path | None, tyro.conf.arg(help="a YAML file or a recipe")], None)
_BACKBONE = (
    "backbone",
    Annotated[Path | None, tyro.conf.arg(help="minilm, folder or hub id")],
    None,
)


def _command(name: str, cls: type) -> object:
    text = cli.COMMANDS[name][1] if name in cli.COMMANDS else name
    return Annotated[cls, tyro.conf.subcommand(name=name, description=text, prefix_name=False)]


def _choice(name: str, words: tuple[str, ...]) -> type:
    """A dataclass that takes one of some words, each a subcommand: tyro completes those."""
    kinds = tuple(_command(word, dataclasses.make_dataclass(word.title(), [])) for word in words)
    return dataclasses.make_dataclass(name, [("word", Union[kinds])])  # noqa: UP007


# The last lines of tyro's script that are replaced, and what stands in their place: recipes after
# --config, and file names where there is nothing to complete.
_CALL = {"zsh": f'typeset -A opt_args\n{_FUNCTION} "$@"'}
_ADDED = {
    "bash": f"""

_sbrrt_fast_or_files() {{
  {_FUNCTION} "$@"
  if [[ ${{#COMPREPLY[@]}} -eq 1 && -z "${{COMPREPLY[0]}}" ]]; then COMPREPLY=(); fi
  if [[ "${{COMP_WORDS[COMP_CWORD-1]}}" == --config ]]; then
    COMPREPLY+=($(compgen -W "RECIPES" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  fi
}}
complete -o default -o filenames -F _sbrrt_fast_or_files sbrrt-fast""",
    "zsh": f"""

_sbrrt_fast_or_files() {{
  typeset -A opt_args
  if [[ "$words[CURRENT-1]" == --config ]]; then compadd -- RECIPES; fi
  {_FUNCTION} "$@" || _files
}}
if [[ "$funcstack[1]" == _sbrrt-fast ]]; then
  _sbrrt_fast_or_files "$@"
else
  compdef _sbrrt_fast_or_files sbrrt-fast
fi""",
    "fish": """

complete --command sbrrt-fast --force-files --condition \\
  'test (count (commandline -opc)) -gt 1; and not string match -q -- "-*" (commandline -ct)'
complete --command sbrrt-fast --arguments "RECIPES" --condition \\
  'test (commandline -opc)[-1] = --config'""",
}
