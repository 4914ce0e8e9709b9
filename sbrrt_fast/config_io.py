"""Run configurations in and out: YAML files and nested dicts to and from the dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import ALIAS, check_keys, config_to_dict, plain, quoted
from sbrrt_fast.config_yaml import read_yaml, to_yaml
from sbrrt_fast.data.sources import portable_task
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.files import write_text
from sbrrt_fast.messages import shown

MINILM = "minilm"  # the backbone of that name, which is no folder
# Of one call of a command, not of the run.
CALL_FIELDS = ("output", "resume", "overwrite", "extend", "rank_timeout", "token_cache")


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

    See ``recipe_text``.
    """
    write_text(path, recipe_text(config))


def recipe_text(config: RunConfig) -> str:
    """The settings that define a run, as YAML.

    That is every field but those of one call (``CALL_FIELDS``), with absolute folders: it trains
    the same run from anywhere, into any folder.
    """
    data = config_to_dict(portable(config))
    return to_yaml({k: v for k, v in data.items() if k not in CALL_FIELDS})


def portable(config: RunConfig) -> RunConfig:
    """The configuration with absolute folders of data, datasets and backbone."""
    backbone = config.model.backbone
    if backbone != MINILM and Path(backbone).expanduser().is_dir():
        backbone = str(Path(backbone).expanduser().resolve())
    model = dataclasses.replace(config.model, backbone=backbone)
    tasks = {name: portable_task(task) for name, task in config.tasks.items()}
    data_dir = config.data_dir and config.data_dir.expanduser().resolve()
    return dataclasses.replace(config, model=model, data_dir=data_dir, tasks=tasks)


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
            raise ConfigError(f"expected keys and values, got {quoted(data)}")
        data = _without_alias(data)
        check_keys(data, RunConfig, "")
        return RunConfig(**data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


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
        section[last] = plain(value)
    return config_from_dict(data, source)


# Dicts to dataclasses


def _without_alias(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with ``backbone`` as ``model.backbone``, where it takes precedence."""
    data = dict(data)
    model, backbone = data.get("model"), data.pop(ALIAS, None)
    if backbone is not None and isinstance(model, Mapping | None):
        data["model"] = {**(model or {}), "backbone": backbone}
    return data
