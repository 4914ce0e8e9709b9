"""Run configurations in and out: YAML files and command-line flags over the dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_rules import validate
from sbrrt_fast.config_yaml import read_yaml, to_yaml
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig, check_task_name
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.files import write_text
from sbrrt_fast.messages import shown

MINILM = "minilm"  # the backbone of that name, which is no folder
CALL_FIELDS = ("output", "resume", "overwrite")  # of one call of a command, not of the run


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a YAML file, or the defaults where ``path`` is None.

    Args:
        path: a file such as ``configs/sbrrt.yaml``; keys it leaves out keep their defaults.
        overrides: further values by dotted key, such as ``{"smart.weight": 1.0}``.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it cannot be used.
    """
    return _validated(_overridden(_read_config(path), overrides or {}), path)


def save_config(config: RunConfig, path: Path) -> None:
    """Writes every field as YAML, atomically; ``load_config`` gives back an equal configuration."""
    write_text(path, to_yaml(config_to_dict(config)))


def save_recipe(config: RunConfig, path: Path) -> None:
    """Writes what makes a run the run it is, as YAML, atomically.

    That is every field but those of one call (``output``, ``resume``, ``overwrite``), with
    absolute folders: the file trains the same run from anywhere, into any folder.
    """
    data = config_to_dict(portable(config))
    write_text(path, to_yaml({k: v for k, v in data.items() if k not in CALL_FIELDS}))


def portable(config: RunConfig) -> RunConfig:
    """The configuration with absolute folders of data and backbone, and its aliases resolved."""
    config = _backbone_folded(config)
    backbone = config.model.backbone
    if backbone != MINILM and Path(backbone).expanduser().is_dir():
        backbone = str(Path(backbone).expanduser().resolve())
    model = dataclasses.replace(config.model, backbone=backbone)
    data_dir = config.data_dir and config.data_dir.resolve()
    return dataclasses.replace(config, model=model, data_dir=data_dir)


def config_leaves(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key: ``smart.radius``, ``tasks.sst.files.train``."""
    return dict(_leaves(config_to_dict(config)))


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts, lists and plain values."""
    return _plain(dataclasses.asdict(config))


def config_from_dict(data: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Builds a configuration from nested dicts with strict keys and types.

    ``tasks`` is a list of names of built-in tasks, or a mapping of names to records: those of a
    built-in task override its fields one by one, those of a new task must be complete.

    Args:
        data: the keys of ``RunConfig``, as read from YAML.
        source: where they come from; messages start with it.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type, or a
            task whose fields do not fit together.
    """
    try:
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected keys and values, got {_repr(data)}")
        data = dict(data)
        if "tasks" in data:
            data["tasks"] = _complete_tasks(data["tasks"])
        config = _typed(_known(data, RunConfig, ""))
        for name, task in config.tasks.items():
            task.validate(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def parse_cli(argv: Sequence[str], base: RunConfig, prog: str = "sbrrt-fast train") -> RunConfig:
    """``base`` with the flags of ``argv`` on top: ``--rounds 10 --optimizer.learning-rate 3e-5``.

    Every field is a flag under its dotted key. ``--backbone`` is stored as ``model.backbone``.
    ``--epochs`` without ``--rounds`` puts aside the ``rounds`` of ``base``. ``--help`` prints all
    flags and exits.

    Raises:
        ConfigError: an unknown flag (with the nearest known one), or a value that cannot be used.
    """
    base = _backbone_folded(base)
    if _is_given("--epochs", argv) and not _is_given("--rounds", argv):
        base = dataclasses.replace(base, rounds=None)
    config, unknown = _run_tyro(argv, base, prog)
    if unknown:
        _refuse(unknown, base)
    return _validated(_backbone_folded(config), None)


def parse_run_config(argv: Sequence[str], prog: str) -> RunConfig:
    """The configuration of a command line: ``--config FILE`` first, then flags over it.

    On an error it prints one line to stderr and exits with status 2.
    """
    try:
        path, flags = split_config_flag(argv)
        return parse_cli(flags, _read_config(path), prog)
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _validated(config: RunConfig, path: Path | None) -> RunConfig:
    try:
        validate(config)
    except ConfigError as error:
        raise error if path is None else ConfigError(f"{path}: {error}") from None
    return config


def _read_config(path: Path | None) -> RunConfig:
    if path is None:
        return RunConfig()
    data = read_yaml(Path(path))
    return config_from_dict({} if data is None else data, str(path))


# Dicts to dataclasses


def _complete_tasks(tasks: Any) -> dict[str, Any]:
    """Full records for all ``tasks``; those of built-in tasks are filled from ``BUILTIN_TASKS``."""
    if isinstance(tasks, list) and all(isinstance(name, str) for name in tasks):
        if len(set(tasks)) < len(tasks):
            raise ConfigError(f"tasks: a name is given twice in {_repr(tasks)}")
        tasks = dict.fromkeys(tasks)
    if not isinstance(tasks, Mapping):
        raise ConfigError(f"tasks: must be a list of names or a mapping, got {_repr(tasks)}")
    return {name: _complete_task(name, fields) for name, fields in tasks.items()}


def _complete_task(name: str, fields: Any) -> Any:
    check_task_name(name)
    if name not in BUILTIN_TASKS:
        if not fields:
            raise ConfigError(
                f"tasks: '{name}' is not a built-in task{_hint(name, BUILTIN_TASKS)}; a task of "
                f"your own needs its fields under tasks.{name}"
            )
        return fields
    record = _plain(dataclasses.asdict(BUILTIN_TASKS[name]))
    if fields is not None and not isinstance(fields, Mapping):
        return fields
    fields = dict(fields or {})
    if isinstance(fields.get("files"), Mapping):
        fields["files"] = {**record["files"], **fields["files"]}
    return {**record, **fields}


def _known(data: Mapping[str, Any], cls: type, prefix: str) -> dict[str, Any]:
    """A copy of ``data`` after checking that every key is a field of the dataclass ``cls``."""
    hints = get_type_hints(cls)
    checked = {}
    for key, value in data.items():
        if key not in hints:
            hint = _hint(key, hints) or _hint(key, config_leaves(RunConfig()))
            raise ConfigError(f"unknown key '{prefix}{shown(key)}'{hint}")
        checked[key] = _known_value(value, hints[key], f"{prefix}{key}.")
    return checked


def _known_value(value: Any, hint: Any, prefix: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if value is None:  # a section whose lines are all commented out
            return {}
        return _known(value, hint, prefix) if isinstance(value, Mapping) else value
    if hint == dict[str, TaskConfig]:
        return {
            name: _known_value(task, TaskConfig, f"{prefix}{name}.") for name, task in value.items()
        }
    choices = [c for arg in (hint, *get_args(hint)) for c in get_args(arg) if isinstance(c, str)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_choice = choices and is_number and str(value) in choices  # norm: 2, norm: .inf
    return str(value) if is_choice else value


def _typed(data: dict[str, Any]) -> RunConfig:
    # JSON mode: lists may fill tuples and strings paths, but nothing else is converted.
    try:
        text = json.dumps(data, default=str)
        return TypeAdapter(RunConfig).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
    except (ValueError, RecursionError):  # from Python: a value inside itself, an endless number
        raise ConfigError("the values cannot be written as JSON; give plain, finite ones") from None
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise ConfigError(f"'{key}' is missing; add it") from None
    if first["type"] == "json_invalid":
        raise ConfigError("a text holds half of a surrogate pair (such as '\\ud800'); remove it")
    expected = first["msg"].replace("Input should be", "must be")
    advice = _TYPE_ADVICE.get(first["type"], "")
    raise ConfigError(f"{key}: {expected}, got {_repr(first['input'])}{advice}")


_TYPE_ADVICE = {
    "bool_type": "; write true or false",
    "int_type": "; write digits alone, such as 90",
    "float_type": "; write a number such as 3e-5 or .inf",
    "string_type": "; put it in quotes",
}


def _overridden(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    if not overrides:
        return config
    return config_with(config, overrides, "overrides")


def config_with(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """``config`` with ``values`` by dotted key, such as ``{"smart.weight": 1.0}``, on top.

    Raises:
        ConfigError: starting with ``source``, see ``config_from_dict``.
    """
    data = config_to_dict(config)
    for key, value in values.items():
        *sections, last = key.split(".")
        section: Any = data
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                key = shown(key)
                raise ConfigError(f"{source}: '{key}' is not a field; '{name}' has none")
        section[last] = _plain(value)
    return config_from_dict(data, source)


def _repr(value: Any) -> str:
    return shown(repr(value))


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _hint(word: str, known: Any) -> str:
    """``; did you mean '...'?`` with the nearest of ``known``, or nothing."""
    same_leaf = [key for key in known if key.rpartition(".")[2] == word]
    nearest = (
        same_leaf if len(same_leaf) == 1 else difflib.get_close_matches(word, list(known), n=1)
    )
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


# Command line


def split_config_flag(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of ``--config FILE`` or ``--config=FILE``, and the other arguments."""
    paths, rest, remaining = [], [], iter(argv)
    for argument in remaining:
        if argument == "--config":
            paths.append(next(remaining, ""))
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if len(paths) > 1 or "" in paths:
        raise ConfigError("--config: give one YAML file, such as --config configs/sbrrt.yaml")
    return (Path(paths[0]) if paths else None), rest


def _run_tyro(argv: Sequence[str], base: RunConfig, prog: str) -> tuple[RunConfig, list[str]]:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                RunConfig,
                prog=prog,
                description="Train with --config FILE (YAML) and any of these flags over it.",
                args=list(argv),
                default=base,
                return_unknown_args=True,
            )
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


def _refuse(unknown: Sequence[str], base: RunConfig) -> NoReturn:
    flag = next((token for token in unknown if token.startswith("-")), None)
    if flag is None:
        argument = shown(unknown[0])
        raise ConfigError(f"unexpected argument '{argument}'; settings are flags, see --help")
    key = flag.partition("=")[0].lstrip("-").replace("-", "_")
    hint = _hint(key, config_leaves(base))
    hint = re.sub(r"'(.*)'", lambda match: f"'--{match[1].replace('_', '-')}'", hint)
    raise ConfigError(f"unknown flag '{shown(flag.partition('=')[0])}'{hint or '; see --help'}")


def flag_value(flag: str, argv: Sequence[str]) -> str | None:
    """What follows ``--flag`` or ``--flag=`` for the last time, or None."""
    values = [token.partition("=")[2] for token in argv if token.startswith(f"{flag}=")]
    values += [value for token, value in itertools.pairwise(argv) if token == flag]
    return values[-1] if values else None


def _is_given(flag: str, argv: Sequence[str]) -> bool:
    return any(token == flag or token.startswith(f"{flag}=") for token in argv)


def _backbone_folded(config: RunConfig) -> RunConfig:
    if config.backbone is None:
        return config
    model = dataclasses.replace(config.model, backbone=config.backbone)
    return dataclasses.replace(config, model=model, backbone=None)
