"""A trained model's folder: ``encoder/`` (Hugging Face), ``heads.safetensors``, ``tasks.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.hub import load_encoder, save_encoder
from sbrrt_fast.model.multitask import MultiTaskModel

ENCODER, HEADS, TASKS = "encoder", "heads.safetensors", "tasks.json"


def save_model(model: MultiTaskModel, directory: Path, tokenizer: Tokenizer) -> None:
    """Writes the model's files into an existing folder (see ``checkpoint.atomic_directory``)."""
    save_encoder(model.encoder, directory / ENCODER, tokenizer)
    heads = {name: p.detach().cpu().contiguous() for name, p in model.heads.state_dict().items()}
    save_file(heads, directory / HEADS)
    tasks = {name: asdict(task) for name, task in model.tasks.items()}
    record = {"pair_features": model.pair_features, "tasks": tasks}
    (directory / TASKS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_model(directory: Path) -> tuple[MultiTaskModel, Tokenizer]:
    """The model and tokenizer that ``save_model`` wrote.

    Raises:
        WeightsError: a file is missing, damaged or does not fit the others.
    """
    record = _read_tasks(directory / TASKS)
    try:
        tasks = TypeAdapter(dict[str, TaskConfig]).validate_python(record["tasks"])
    except ValidationError as error:
        raise WeightsError(f"{directory / TASKS}: cannot be used, {error}") from error
    model = MultiTaskModel(load_encoder(directory / ENCODER), tasks, record["pair_features"])
    path = directory / HEADS
    try:
        tensors = load_file(path)
        _check_complete(path, tensors, model.heads.state_dict())
        model.heads.load_state_dict(tensors)
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be used, {error}") from error
    return model, load_tokenizer(directory / ENCODER)


def _check_complete(path: Path, tensors: Mapping[str, Tensor], expected: Iterable[str]) -> None:
    if missing := [name for name in expected if name not in tensors]:
        reason = "it was saved by an earlier version or for other tasks; train again"
        if missing[0].endswith((".units.mean", ".units.scale")):
            reason = "it was saved before regression was trained in standardised units; train again"
        raise WeightsError(f"{path}: '{missing[0]}' is missing, so {reason}")


def _read_tasks(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: is missing; this is not the folder of a trained model"
        ) from None
    except ValueError as error:
        raise WeightsError(f"{path}: cannot be used, {error}") from error
