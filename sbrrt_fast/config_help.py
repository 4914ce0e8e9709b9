"""``--help`` of the commands that train: the common flags first, the others by group.

tyro lays the text out. What it is given are dataclasses with the fields of the configuration's,
whose help texts are those of the docstrings without markup.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import tyro
from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import did_you_mean
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

COMMON = (
    *("data_dir", "output", "model.backbone", "epochs", "rounds", "seed", "precision", "device"),
    *("resume", "overwrite", "round.batch_size", "optimizer.learning_rate", "smart.weight"),
    *("bregman.weight", "early_stopping.patience", "skip_final_evaluation"),
)
ALL, RUN, TASKS = "all", "run", "tasks"
_CONFIG_HELP = "a YAML file, or the name of a recipe that comes with the package, such as sbrrt."
_OTHER_NAMES = {"model.backbone": "backbone"}


def help_topic(argv: Sequence[str]) -> str | None:
    """The topic of ``--help TOPIC``, empty if none is named; None without ``--help``."""
    for number, word in enumerate(argv):
        if word in ("-h", "--help"):
            following = argv[number + 1 : number + 2]
            return following[0] if following and not following[0].startswith("-") else ""
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


def print_help(topic: str, base: RunConfig, prog: str) -> None:
    """Prints the flags of a topic with the values that they have in ``base``.

    Args:
        topic: ``all``, a group, or empty for the common flags.

    Raises:
        ConfigError: there is no such topic; the message has those that there are.
    """
    names, topic = [*groups(base), ALL], topic.replace("-", "_")
    if topic and topic not in names:
        hint = did_you_mean(topic, names) or f"; it takes {', '.join(names)}"
        raise ConfigError(f"--help: there is no group of flags '{shown(topic)}'{hint}")
    fields = [_config_field()] if topic in ("", ALL, RUN) else []
    if topic:
        chosen = list(groups(base)) if topic == ALL else [topic]
        fields += [field for name in chosen for field in _group_fields(name, base)]
    else:
        fields += _common_fields(base)
    print(_laid_out(fields, prog))
    print("\n".join(_notes(topic, base, prog)))


def groups(config: RunConfig) -> dict[str, str]:
    """Each group of flags and what it is of."""
    return {
        RUN: "the run as a whole",
        TASKS: "the tasks one by one",
        **{name: _summary(type(section)) for name, section in _sections(config).items()},
    }


def help_texts(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says of each attribute, on one line and without markup."""
    texts = {}
    for entry in parse_docstring(cls.__doc__ or "", DocstringStyle.GOOGLE).params:
        for name in entry.arg_name.split(", "):
            texts[name] = _plain(entry.description)
    return texts


@functools.cache
def described(cls: type) -> type:
    """A dataclass with the fields and defaults of ``cls``, and help texts without markup."""
    texts, hints = help_texts(cls), get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        hint = described(hint) if dataclasses.is_dataclass(hint) else hint
        hint = Annotated[hint, tyro.conf.arg(help=texts.get(field.name, ""))]
        fields.append((field.name, hint, _described_default(field)))
    made = dataclasses.make_dataclass(cls.__name__, fields, kw_only=True, frozen=True)
    made.__doc__ = _summary(cls)
    return made


def described_value(value: Any) -> Any:
    """A configuration, or a section of one, as ``described`` has it."""
    if not dataclasses.is_dataclass(value):
        return value
    names = [field.name for field in dataclasses.fields(value)]
    return described(type(value))(**{n: described_value(getattr(value, n)) for n in names})


def _described_default(field: dataclasses.Field) -> Any:
    """What make_dataclass takes for the same default, or for none."""
    if field.default_factory is dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    return dataclasses.field(default_factory=lambda: described_value(field.default_factory()))


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("``", "'").split())


def _summary(cls: type) -> str:
    parsed = parse_docstring(cls.__doc__ or "", DocstringStyle.GOOGLE)
    return _plain(parsed.short_description).rstrip(".")


def _sections(config: RunConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}


# Fields as dataclasses.make_dataclass takes them: a name, a type with its marker, and a default.
_Field = tuple[str, Any, Any]


def _config_field() -> _Field:
    marker = tyro.conf.arg(metavar="FILE|RECIPE", help=_CONFIG_HELP, help_behavior_hint="")
    return "config", Annotated[str, marker], ""


def _common_fields(base: RunConfig) -> list[_Field]:
    return [_flag(key, base, _OTHER_NAMES.get(key, key)) for key in COMMON]


def _group_fields(name: str, base: RunConfig) -> list[_Field]:
    if name == RUN:
        keys = [field.name for field in dataclasses.fields(base)]
        return [_flag(key, base, key) for key in keys if key not in (TASKS, *_sections(base))]
    if name == TASKS:
        task = next(iter(base.tasks))
        return [_section(f"tasks.{task}", base.tasks[task])]
    return [_section(name, getattr(base, name))]


def _flag(key: str, base: RunConfig, flag: str) -> _Field:
    *sections, name = key.split(".")
    owner = functools.reduce(getattr, sections, base)
    hint, text = get_type_hints(type(owner))[name], help_texts(type(owner)).get(name, "")
    marker = tyro.conf.arg(name=flag, help=text)
    return key.replace(".", "_"), Annotated[hint, marker], _default(getattr(owner, name))


def _section(name: str, value: Any) -> _Field:
    hint = Annotated[described(type(value)), tyro.conf.arg(name=name)]
    return name.replace(".", "_").replace("-", "_"), hint, _default(described_value(value))


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def _laid_out(fields: Sequence[_Field], prog: str) -> str:
    """The text of tyro for these fields."""
    text = io.StringIO()
    made = dataclasses.make_dataclass("Flags", fields, kw_only=True)
    made.__doc__ = "Train with a recipe or the defaults, and any of these flags over it."
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(made, args=["--help"], prog=prog)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _notes(topic: str, base: RunConfig, prog: str) -> list[str]:
    first, *others = base.tasks
    lines = []
    if topic in (ALL, TASKS) and others:
        lines += ["", f"{', '.join(others)}: the same flags as {first}, each with its own values."]
    if topic == ALL:
        return lines
    names = {name: text for name, text in groups(base).items() if name != topic}
    wide = max(map(len, names))
    rows = [f"  {name:<{wide}}  {text}" for name, text in (names | {ALL: "every flag"}).items()]
    return [*lines, "", f"more flags: {prog} --help GROUP", *rows]
