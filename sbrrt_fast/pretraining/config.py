"""The configuration of a pre-training run: settings that check themselves, YAML in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sbrrt_fast.config import LogConfig, ModelConfig, OptimizerConfig, RoundConfig, RunConfig
from sbrrt_fast.config_fields import check_keys, config_to_dict, quoted, typed_fields
from sbrrt_fast.config_io import portable
from sbrrt_fast.config_yaml import read_yaml, to_yaml
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.files import write_text
from sbrrt_fast.pretraining.settings import PretrainSettings
from sbrrt_fast.ranges import Rule, check

CALL_FIELDS = ("output", "resume", "overwrite", "token_cache")  # of one call, not of the run
# Settings that a resumed run may change.
MAY_DIFFER = {
    *(*CALL_FIELDS, "data_dir", "text", "backbone", "device"),
    *("log.every", "log.tensorboard", "log.state_every"),
}
SHORTEST = 8  # tokens of a sequence, [CLS] and [SEP] among them


@dataclass(frozen=True)
class PretrainConfig(PretrainSettings):
    __doc__ = PretrainSettings.__doc__

    def __post_init__(self) -> None:
        for name, value in typed_fields(self, PretrainSettings).items():
            object.__setattr__(self, name, value)
        as_training(self)
        check(_rules(self))

    @property
    def held_out_source(self) -> str:
        """``held_out.source`` without ``auto``."""
        if self.held_out.source != "auto":
            return self.held_out.source
        has_dev = all("dev" in task.files for task in self.tasks.values())
        return "dev" if self.tasks and has_dev and "dev" not in self.splits else "share"


def as_training(config: PretrainSettings) -> RunConfig:
    """The settings that training has too, as those of a training run.

    Raises:
        ConfigError: one of them is out of its range; see ``config_rules``.
    """
    optimizer = {f.name: getattr(config.optimizer, f.name) for f in fields(config.optimizer)}
    log = {f.name: getattr(config.log, f.name) for f in fields(config.log)}
    others = ("data_dir", "output", "rounds", "epochs", "seed", "backend", "precision", "device")
    dropout = {n: getattr(config, n) for n in ("hidden_dropout", "attention_dropout")}
    return RunConfig(
        **{name: getattr(config, name) for name in (*others, "token_cache")},
        **({"tasks": config.tasks} if config.tasks else {}),
        model=ModelConfig(config.backbone, **dropout),
        optimizer=OptimizerConfig(**optimizer),
        round=RoundConfig(batch_size=config.batch_size),
        log=LogConfig(**log),
    )


def _rules(c: PretrainSettings) -> Iterator[Rule]:
    yield "text", [*map(str, c.text)], not (c.tasks and c.text), "left out where tasks are named"
    yield "splits", c.splits, 0 < len(c.splits) == len(set(c.splits)), "names, each given once"
    longest = f"at least {SHORTEST}"
    yield "max_length", c.max_length, c.max_length >= SHORTEST, longest
    yield "head_rounds", c.head_rounds, (c.head_rounds or 0) >= 0, "at least 0"
    m, h = c.masking, c.held_out
    yield "masking.share", m.share, 0 < m.share < 1, "above 0 and below 1"
    for name in ("mask", "random"):
        yield f"masking.{name}", getattr(m, name), 0 <= getattr(m, name) <= 1, "from 0 to 1"
    is_fine = m.mask + m.random <= 1 + 1e-9
    yield "masking.random", m.random, is_fine, "at most 1 together with masking.mask"
    yield "held_out.share", h.share, 0 < h.share < 1, "above 0 and below 1"
    yield "held_out.most", h.most, h.most >= 1, "at least 1"
    is_dev = h.source == "dev"
    yield "held_out.source", h.source, not is_dev or bool(c.tasks), "another one than dev with text"
    is_fine = not is_dev or "dev" not in c.splits
    yield "held_out.source", h.source, is_fine, "another one than dev, which splits trains on"


def load_pretrain_config(path: Path | None) -> PretrainConfig:
    """The configuration of a YAML file, or the defaults where ``path`` is None.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it cannot be used.
    """
    data = None if path is None else read_yaml(path)
    return pretrain_config_from_dict({} if data is None else data, str(path))


def pretrain_config_from_dict(data: Any, source: str) -> PretrainConfig:
    """A configuration from nested dicts; errors start with ``source``."""
    try:
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected keys and values, got {quoted(data)}")
        check_keys(data, PretrainSettings, "", PretrainSettings)
        return PretrainConfig(**data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def save_pretrain_config(config: PretrainConfig, path: Path) -> None:
    """Writes the settings that define a run, with absolute paths, as YAML, atomically."""
    data = config_to_dict(portable_pretrain(config))
    write_text(path, to_yaml({k: v for k, v in data.items() if k not in CALL_FIELDS}))


def portable_pretrain(config: PretrainConfig) -> PretrainConfig:
    """The configuration with absolute folders and files."""
    run = portable(as_training(config))
    text = tuple(path.expanduser().resolve() for path in config.text)
    tasks = run.tasks if config.tasks else {}
    backbone, data_dir = run.model.backbone, run.data_dir
    return replace(config, tasks=tasks, data_dir=data_dir, text=text, backbone=backbone)
