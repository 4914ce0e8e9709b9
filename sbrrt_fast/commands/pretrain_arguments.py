"""The command line of ``sbrrt-fast pretrain``: ``--config FILE``, and any setting as a flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config_cli import flag_value, split_config_flag
from sbrrt_fast.config_help import described, described_value
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.pretraining.config import PretrainConfig
from sbrrt_fast.pretraining.config import load_pretrain_config as load
from sbrrt_fast.pretraining.settings import PretrainSettings
from sbrrt_fast.training.run_folder import PRETRAIN_CONFIG, check_output, is_run

PROG = "sbrrt-fast pretrain"


@dataclass(frozen=True)
class PretrainArguments(PretrainSettings):
    tasks: tuple[str, ...] = field(default_factory=tuple)
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None


_SETTINGS = (PretrainSettings.__doc__ or "").partition("Attributes:\n")[2].partition("\n    Raises")
PretrainArguments.__doc__ = f"""Pre-train a BERT checkpoint further on texts of tasks or on files.

    The model in OUTPUT/last is one that --backbone of sbrrt-fast train takes.

    Attributes:
{_SETTINGS[0].rstrip()}
        tasks: names of tasks whose texts to train on, built-in ones or those of --config.
        config: a YAML file with any of these settings; flags go over it.
"""


def parse_pretrain_config(argv: Sequence[str]) -> PretrainConfig:
    """The configuration of a command line: ``--config`` first, then flags over it.

    With ``--resume`` the settings are those of the run, unless ``--config`` gives them. ``--help``
    prints all flags and exits.

    Raises:
        ConfigError: an unknown flag or key, or a value that cannot be used.
        SbrrtError: there is no run to resume.
    """
    path, flags = split_config_flag(argv)
    return _with_flags(_resumed(path, flags) if "--resume" in flags else load(path), flags)


def _resumed(path: Path | None, flags: Sequence[str]) -> PretrainConfig:
    output = Path(flag_value("--output", flags) or PretrainSettings.output)
    if path is None:
        check_output(output, resume=True)
        if not (output / PRETRAIN_CONFIG).is_file():
            raise WeightsError(f"{output}: is no run of `{PROG}`, it has no {PRETRAIN_CONFIG}")
        return replace(load(output / PRETRAIN_CONFIG), output=output)
    if flag_value("--output", flags) is None and is_run(path.parent):
        output = path.parent  # --config is that of a run
    return replace(load(path), output=output)


def _with_flags(base: PretrainConfig, flags: Sequence[str]) -> PretrainConfig:
    kind, names = described(PretrainArguments), [f.name for f in fields(base)]
    values = {name: getattr(base, name) for name in names} | {"tasks": tuple(base.tasks)}
    if _is_given("--epochs", flags) and not _is_given("--rounds", flags):
        values["rounds"] = None
    default = described_value(PretrainArguments(**values))
    given = asdict(parse_arguments(kind, flags, PROG, default=default))
    tasks = {name: base.tasks.get(name) for name in given["tasks"]}
    return PretrainConfig(**{name: given[name] for name in names} | {"tasks": tasks})


def _is_given(flag: str, flags: Sequence[str]) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in flags)
