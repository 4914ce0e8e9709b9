"""A trained model's folder: that of its encoder, with heads, tasks and a model card in it.

transformers and sentence-transformers load the folder as it is. Runs of earlier versions have the
encoder in ``encoder/``, which is read as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from sbrrt_fast.config import PairFeatures
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.files import write_json, write_text
from sbrrt_fast.json_file import as_json, kind_of, read_json
from sbrrt_fast.messages import shown
from sbrrt_fast.model.fit import check_fit
from sbrrt_fast.model.hub import write_encoder
from sbrrt_fast.model.load_encoder import encoder_from_folder
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.tensors import TensorReader, shapes_only, write_tensors

HEADS, TASKS, CARD = "heads.safetensors", "tasks.json", "README.md"

_EARLIER_ENCODER = "encoder"

_UNITS = (".units.mean", ".units.scale")


def save_model(
    model: MultiTaskModel,
    directory: Path,
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    card: str = "",
) -> None:
    """Writes the model's files into an empty folder (see ``checksums.checksummed_directory``).

    Args:
        max_length: tokens after which sentence-transformers cuts a text, see ``write_encoder``.
        card: the text of ``README.md``; none is written if empty.
    """
    write_encoder(model.encoder, directory, tokenizer, max_length)
    write_tensors(model.head_tensors(), directory / HEADS)
    write_tasks(model, directory)
    if card:
        write_text(directory / CARD, card)


def write_tasks(model: MultiTaskModel, directory: Path) -> None:
    """Writes ``tasks.json``: the record of each task, and how pairs become features."""
    tasks = {name: asdict(task) for name, task in model.tasks.items()}
    write_json(directory / TASKS, {"pair_features": model.pair_features, "tasks": tasks})


def load_model(directory: Path) -> tuple[MultiTaskModel, Tokenizer]:
    """The model and tokenizer that ``save_model`` wrote.

    Raises:
        WeightsError: a file is missing, damaged or does not fit the others.
    """
    tasks, pair_features = _read_tasks(directory / TASKS)
    folder = encoder_folder(directory)
    encoder = encoder_from_folder(folder)
    tokenizer = load_tokenizer(folder)
    check_fit(tokenizer, encoder.config, tasks, folder)
    with shapes_only():
        heads = MultiTaskModel(encoder, tasks, pair_features).heads
    shapes = {name: list(tensor.shape) for name, tensor in heads.state_dict().items()}
    tensors = _read_heads(directory / HEADS, shapes)  # before any head has memory
    model = MultiTaskModel(encoder, tasks, pair_features)
    model.heads.load_state_dict(tensors)
    return model, tokenizer


def encoder_folder(directory: Path) -> Path:
    """Where the encoder and tokenizer of a trained model are: its folder, or ``encoder/`` in it."""
    earlier = Path(directory) / _EARLIER_ENCODER
    is_earlier = earlier.is_dir() and not (Path(directory) / "config.json").is_file()
    return earlier if is_earlier else Path(directory)


def _read_heads(path: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; restore the folder from a copy or train anew")
    reader = TensorReader(shapes, lambda stored: stored, dtype=None)
    reader.read(path)
    advice = "restore the folder or train anew"
    if any(name.endswith(_UNITS) for name in reader.missing()):
        advice = "it was saved before regression was trained in standardised units; train anew"
    return reader.finish(f"{path}: does not fit {TASKS}", advice)


def _read_tasks(path: Path) -> tuple[dict[str, TaskConfig], str]:
    """Tasks by name, and ``pair_features``."""
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; this is not the folder of a trained model")
    record = read_json(path)
    pair_features, tasks = record.get("pair_features"), record.get("tasks")
    if pair_features not in get_args(PairFeatures):
        raise _unusable(path, f"pair_features is {as_json(pair_features)}")
    if not isinstance(tasks, dict) or not tasks:
        raise _unusable(path, f"tasks must be an object with a task or more, got {kind_of(tasks)}")
    return {name: _task(path, name, fields) for name, fields in tasks.items()}, pair_features


def _task(path: Path, name: str, stored: object) -> TaskConfig:
    """One record, with strict types: JSON's arrays are tuples, and nothing else is converted."""
    where = f"tasks.{shown(name)}"
    if not isinstance(stored, dict):
        raise _unusable(path, f"{where} must be an object, got {kind_of(stored)}")
    if unknown := stored.keys() - {field.name for field in fields(TaskConfig)}:
        raise _unusable(path, f"{where} has an unknown key {as_json(min(unknown))}")
    try:
        task = TypeAdapter(TaskConfig).validate_json(json.dumps(stored), strict=True)
        validate_task(name, task)
        if not task.is_complete:
            raise ConfigError(f"tasks.{name}: num_classes or class_weights are not known")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        raise _unusable(path, f"{key}: {first['msg']}, got {as_json(first['input'])}") from None
    except ConfigError as error:
        raise _unusable(path, str(error)) from None
    return task


def _unusable(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: cannot be used, {reason}; restore the folder or train anew")
