"""A trained model as it is read back, with the settings it was trained with."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from sbrrt_fast.checksums import readable_directory
from sbrrt_fast.config import Device, ModelConfig, Precision, RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.messages import shown
from sbrrt_fast.model.hub import read_max_length
from sbrrt_fast.model.io import TASKS, encoder_folder, load_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.build import pick_device
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.run_folder import BEST, CONFIG, LAST

Which = Literal["best", "last"]


@dataclass(frozen=True)
class SavedModel:
    """A model with its tokenizer and settings.

    Attributes:
        config: the run's, with the tasks of the model.
        model: on its device.
        tokenizer: the model's.
    """

    config: RunConfig
    model: MultiTaskModel
    tokenizer: Tokenizer


def read_saved(
    path: Path,
    *,
    which: Which = "best",
    device: Device = "auto",
    precision: Precision | None = None,
) -> SavedModel:
    """The model of a run's folder, or one of its model folders (``best``, ``last``, or a copy).

    Args:
        which: ``best`` or ``last``, of a run's folder. device: ``auto``, ``cpu`` or ``cuda``.
        precision: as the run was trained if None; fp32 for a model folder outside its run.

    Raises:
        WeightsError: the folder is not that of a run or model, or its model cannot be used.
        ConfigError: its configuration cannot be used.
        BackendError: there is no such device.
    """
    path = Path(path)
    if which not in (BEST, LAST):
        raise ConfigError(f"which: must be '{BEST}' or '{LAST}', got {shown(repr(which))}")
    if not os.path.isfile(path / TASKS):
        return read_model(path / which, read_settings(path), device, precision)
    run = path.resolve().parent
    config = read_settings(run) if os.path.isfile(run / CONFIG) else _settings_of(path)
    return read_model(path, config, device, precision)


def _settings_of(folder: Path) -> RunConfig:
    """Settings for a model whose run is not at hand."""
    longest = read_max_length(encoder_folder(folder))
    return RunConfig() if longest is None else RunConfig(model=ModelConfig(max_length=longest))


def read_settings(run: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        WeightsError: it is not the folder of a run. ConfigError: they cannot be used.
    """
    if not os.path.isfile(run / CONFIG):  # Path.is_file raises for a name that is too long
        raise WeightsError(
            f"{run}: is not the folder of a run, it has no config.yaml; give the --output of "
            "`sbrrt-fast train`"
        )
    return load_config(run / CONFIG)


def read_model(
    folder: Path, config: RunConfig, device: Device = "auto", precision: Precision | None = None
) -> SavedModel:
    """The model in a folder, to be used with a run's settings; see ``read_saved``."""
    chosen = pick_device(device)
    folder = readable_directory(folder)
    model, tokenizer = load_model(folder)
    check_loaded(model.state_dict(), folder, "restore the folder from a copy or train again")
    config = replace(config, precision=precision or config.precision, tasks=model.tasks)
    return SavedModel(config, model.to(chosen), tokenizer)
