"""The fields of a configuration: their keys, their types, and their values as plain data."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from sbrrt_fast.config_rules import check_texts
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.data.task_rules import check_task_name
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.settings import RunSettings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ALIAS = "backbone"  # of model.backbone


def config_leaves(config: Any) -> dict[str, Any]:
    """Every setting by its dotted key: ``smart.radius``, ``tasks.sst.files.train``."""
    return dict(_leaves(config_to_dict(config)))


def known_keys(config: Any) -> list[str]:
    """Every dotted key that a file or a flag may set."""
    return [*config_leaves(config), ALIAS]


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts, lists and plain values."""
    data: dict[str, Any] = plain(dataclasses.asdict(config))
    return data


def typed_fields(config: Any, cls: type = RunSettings) -> dict[str, Any]:
    """A configuration's values in their fields' types, which they may lack where they come in.

    Args:
        cls: the dataclass of its settings; one of the fields is ``tasks``.

    Raises:
        ConfigError: see ``config_from_dict``.
    """
    if importlib.util.find_spec("pydantic") is None:  # on the machines of benchmarks.gpu_check
        return {}
    tasks = _complete_tasks(config.tasks)
    return _typed(_checked(vars(config) | {"tasks": tasks}, cls, ""), cls)


def _complete_tasks(tasks: Any) -> dict[str, Any]:
    """Full records for all ``tasks``; those of built-in tasks are filled from ``BUILTIN_TASKS``."""
    if isinstance(tasks, list) and all(isinstance(name, str) for name in tasks):
        if len(set(tasks)) < len(tasks):
            raise ConfigError(f"tasks: a name is given twice in {quoted(tasks)}")
        tasks = dict.fromkeys(tasks)
    if not isinstance(tasks, Mapping):
        raise ConfigError(f"tasks: must be a list of names or a mapping, got {quoted(tasks)}")
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
    record = plain(dataclasses.asdict(BUILTIN_TASKS[name]))
    if fields is not None and not isinstance(fields, Mapping):
        return fields
    fields = dict(fields or {})
    if isinstance(fields.get("files"), Mapping):
        fields["files"] = {**record["files"], **fields["files"]}
    return {**record, **fields}


def check_keys(
    data: Mapping[str, Any], cls: type, prefix: str, settings: type = RunSettings
) -> None:
    """Raises ConfigError for the first key that is no field of the dataclass ``cls``.

    Args:
        settings: the class of the whole configuration, whose keys may be meant.
    """
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            hint = did_you_mean(key, hints) or did_you_mean(key, known_keys(settings()))
            raise ConfigError(f"unknown key '{prefix}{shown(key)}'{hint}")


def _checked(data: Mapping[str, Any], cls: type, prefix: str) -> dict[str, Any]:
    """A copy of ``data`` after checking that every key is a field of the dataclass ``cls``."""
    check_keys(data, cls, prefix)
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
def _field_types(cls: type) -> TypeAdapter[Any]:
    """Of a class that has the fields of ``cls`` and does not check itself."""
    from pydantic import TypeAdapter

    hints = get_type_hints(cls)
    return TypeAdapter(dataclasses.make_dataclass("Fields", hints.items()))


def _typed(data: dict[str, Any], cls: type) -> dict[str, Any]:
    """The values of all fields of ``cls`` in their types."""
    from pydantic import ValidationError

    # JSON mode: lists may fill tuples and strings paths, but nothing else is converted.
    try:
        text = json.dumps(data, default=str)
        return dict(vars(_field_types(cls).validate_json(text, strict=True)))
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
    raise ConfigError(f"{key}: {expected}, got {quoted(first['input'])}{advice}")


_TYPE_ADVICE = {
    "bool_type": "; write true or false",
    "int_type": "; write digits alone, such as 90",
    "float_type": "; write a number such as 3e-5 or .inf",
    "string_type": "; put it in quotes",
}


def quoted(value: Any) -> str:
    return shown(repr(value))


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def did_you_mean(word: str, known: Any) -> str:
    """``; did you mean '...'?`` with the nearest of ``known``, or nothing."""
    same_leaf = [key for key in known if key.rpartition(".")[2] == word]
    close = same_leaf if len(same_leaf) == 1 else difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
