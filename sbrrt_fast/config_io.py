"""Run configurations in and out: YAML files and nested dicts to and from the dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_rules import check_texts
from sbrrt_fast.config_yaml import read_yaml, to_yaml
from sbrrt_fast.data.sources import portable_task
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.data.task_rules import check_task_name
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.files import write_text
from sbrrt_fast.messages import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MINILM = "minilm"  # the backbone of that name, which is no folder
_ALIAS = "backbone"  # of model.backbone
# Of one call of a command, not of the run.
CALL_FIELDS = ("output", "resume", "overwrite", "extend")


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a YAML file, or the defaults where ``path`` is None.

    Args:
        path: a file such as ``configs/sbrrt.yaml``; keys it leaves out keep their defaults.
        overrides: further values by dotted key, such as ``{"smart.weight": 1.0}``.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it cannot be used.
    """
    config = RunConfig()
    if path is not None:
        data = read_yaml(Path(path))
        config = config_from_dict({} if data is None else data, str(path))
    return config_with(config, overrides, "overrides") if overrides else config


def save_config(config: RunConfig, path: Path) -> None:
    """Writes every field as YAML, atomically; ``load_config`` gives back an equal configuration."""
    write_text(path, to_yaml(config_to_dict(config)))


def save_recipe(config: RunConfig, path: Path) -> None:
    """Writes the settings that define a run, as YAML, atomically.

    That is every field but those of one call (``CALL_FIELDS``), with absolute folders: the file
    trains the same run from anywhere, into any folder.
    """
    data = config_to_dict(portable(config))
    write_text(path, to_yaml({k: v for k, v in data.items() if k not in CALL_FIELDS}))


def portable(config: RunConfig) -> RunConfig:
    """The configuration with absolute folders of data, datasets and backbone."""
    backbone = config.model.backbone
    if backbone != MINILM and Path(backbone).expanduser().is_dir():
        backbone = str(Path(backbone).expanduser().resolve())
    model = dataclasses.replace(config.model, backbone=backbone)
    tasks = {name: portable_task(task) for name, task in config.tasks.items()}
    data_dir = config.data_dir and config.data_dir.expanduser().resolve()
    return dataclasses.replace(config, model=model, data_dir=data_dir, tasks=tasks)


def config_leaves(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key: ``smart.radius``, ``tasks.sst.files.train``."""
    return dict(_leaves(config_to_dict(config)))


def known_keys(config: RunConfig) -> list[str]:
    """Every dotted key that a file or a flag may set."""
    return [*config_leaves(config), _ALIAS]


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts, lists and plain values."""
    data: dict[str, Any] = _plain(dataclasses.asdict(config))
    return data


def config_from_dict(data: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Builds a configuration from nested dicts with strict keys and types; see ``validate``.

    ``tasks`` is a list of names of built-in tasks, or a mapping of names to records: those of a
    built-in task override its fields one by one, those of a new task must be complete.
    ``backbone`` stands for ``model.backbone``.

    Args:
        data: the keys of ``RunConfig``, as read from YAML.
        source: where they come from; messages start with it.

    Raises:
        ConfigError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    try:
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected keys and values, got {_repr(data)}")
        data = _without_alias(data)
        _check_keys(data, RunConfig, "")
        return RunConfig(**data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def typed_fields(config: RunConfig) -> dict[str, Any]:
    """A configuration's values in their fields' types, which they may lack where they come in.

    Raises:
        ConfigError: see ``config_from_dict``.
    """
    if importlib.util.find_spec("pydantic") is None:  # on the machines of benchmarks.gpu_check
        return {}
    tasks = _complete_tasks(config.tasks)
    return _typed(_checked(vars(config) | {"tasks": tasks}, RunConfig, ""))


def config_with(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """``config`` with ``values`` by dotted key, such as ``{"smart.weight": 1.0}``, on top.

    Raises:
        ConfigError: starting with ``source``, for a key or value that cannot be used.
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


# Dicts to dataclasses


def _without_alias(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with ``backbone`` as ``model.backbone``, where it takes precedence."""
    data = dict(data)
    model, backbone = data.get("model"), data.pop(_ALIAS, None)
    if backbone is not None and isinstance(model, Mapping | None):
        data["model"] = {**(model or {}), "backbone": backbone}
    return data


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
    if isinstance(fields, TaskConfig):
        return fields
    if name not in BUILTIN_TASKS:
        if not fields:
            hint = did_you_mean(name, BUILTIN_TASKS)
            raise ConfigError(
                f"tasks: '{name}' is not a built-in task{hint}; a task of your own needs its "
                f"fields under tasks.{name}"
            )
        return fields
    record = _plain(dataclasses.asdict(BUILTIN_TASKS[name]))
    if fields is not None and not isinstance(fields, Mapping):
        return fields
    fields = dict(fields or {})
    if isinstance(fields.get("files"), Mapping):
        fields["files"] = {**record["files"], **fields["files"]}
    return {**record, **fields}


def _check_keys(data: Mapping[str, Any], cls: type, prefix: str) -> None:
    """Raises ConfigError for the first key that is no field of the dataclass ``cls``."""
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            hint = did_you_mean(key, hints) or did_you_mean(key, known_keys(RunConfig()))
            raise ConfigError(f"unknown key '{prefix}{shown(key)}'{hint}")


def _checked(data: Mapping[str, Any], cls: type, prefix: str) -> dict[str, Any]:
    """A copy of ``data`` after checking that every key is a field of the dataclass ``cls``."""
    _check_keys(data, cls, prefix)
    hints = get_type_hints(cls)
    return {key: _checked_value(x, hints[key], f"{prefix}{key}.") for key, x in data.items()}


def _checked_value(value: Any, hint: Any, prefix: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if value is None:  # a section whose lines are all commented out
            return {}
        value = vars(value) if isinstance(value, hint) else value
        return _checked(value, hint, prefix) if isinstance(value, Mapping) else value
    if hint == dict[str, TaskConfig]:
        return {
            name: _checked_value(task, TaskConfig, f"{prefix}{name}.")
            for name, task in value.items()
        }
    choices = [c for arg in (hint, *get_args(hint)) for c in get_args(arg) if isinstance(c, str)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_choice = choices and is_number and str(value) in choices  # norm: 2, norm: .inf
    return str(value) if is_choice else value


@functools.cache
def _field_types() -> TypeAdapter[Any]:
    """Of a class that has the fields of ``RunConfig`` and does not check itself."""
    from pydantic import TypeAdapter

    hints = get_type_hints(RunConfig)
    return TypeAdapter(dataclasses.make_dataclass("Fields", hints.items()))


def _typed(data: dict[str, Any]) -> dict[str, Any]:
    """The values of all fields of ``RunConfig`` in their types."""
    from pydantic import ValidationError

    # JSON mode: lists may fill tuples and strings paths, but nothing else is converted.
    try:
        text = json.dumps(data, default=str)
        return dict(vars(_field_types().validate_json(text, strict=True)))
    except ValidationError as error:
        first = error.errors()[0]
    except (ValueError, RecursionError):  # from Python: a value inside itself, an endless number
        raise ConfigError("the values cannot be written as JSON; give plain, finite ones") from None
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise ConfigError(f"'{key}' is missing; add it") from None
    if first["type"] == "json_invalid":
        check_texts(data)
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


def did_you_mean(word: str, known: Any) -> str:
    """``; did you mean '...'?`` with the nearest of ``known``, or nothing."""
    same_leaf = [key for key in known if key.rpartition(".")[2] == word]
    close = same_leaf if len(same_leaf) == 1 else difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
