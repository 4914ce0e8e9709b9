"""Saved states: tensors and JSON values, which come back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sbrrt_fast.checksums import (
    check_directory,
    checksummed_directory,
    damaged,
    readable_directory,
)
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.files import write_json
from sbrrt_fast.model.tensors import write_tensors

TENSORS, META = "state.safetensors", "state.json"
_FORMAT = 3
_SLOTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(directory: Path, *, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes ``state.safetensors`` and ``state.json`` into ``directory``, replacing an older state.

    Args:
        directory: folder of the state; its parent must be there.
        tensors: any dtypes and shapes on any device; no two of them may share memory.
        meta: JSON-serialisable values; floats come back bit for bit.

    Raises:
        OutputError: it cannot be written; the state that was there before is unchanged.
    """
    with checksummed_directory(directory) as new:
        write_tensors(tensors, new / TENSORS)
        write_json(new / META, {"format": _FORMAT, "meta": meta})


def load_state(
    directory: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and meta that ``save_state`` wrote, bit for bit.

    Raises:
        WeightsError: there is no state, or a file of it is missing, truncated or damaged.
    """
    folder = readable_directory(directory)
    check_directory(folder)
    path, meta = folder / TENSORS, _read_meta(folder / META)
    try:
        return load_file(path, device=str(device)), meta
    except (FileNotFoundError, SafetensorError) as error:
        raise damaged(path, str(error)) from error


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(path, "the file is missing") from None
    except (ValueError, RecursionError) as error:  # JSON or UTF-8
        raise damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise damaged(path, f"it is not a state of format {_FORMAT}")
    return record["meta"]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """AdamW's ``exp_avg``, ``exp_avg_sq`` and ``step`` as ``optimizer.<parameter>.<slot>``.

    Parameters that were never updated have no entry.
    """
    return {
        f"optimizer.{name}.{slot}": _apart(optimizer.state[parameter][slot])
        for name, parameter in named_parameters
        if parameter in optimizer.state
        for slot in _SLOTS
    }


def _apart(tensor: Tensor) -> Tensor:
    """A tensor that is all of its memory: numbers of updates may lie side by side in one."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Restores the tensors of ``optimizer_tensors``; other names in ``tensors`` are ignored.

    The optimiser then continues bit for bit; learning rates are set anew at every step.

    Raises:
        WeightsError: the tensors are of other parameters, incomplete, or of another shape.
    """
    # AdamW counts steps on the parameter's device only where its update runs there.
    counts_there = {
        id(parameter): bool(group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = {name: p for name, p in named_parameters if id(p) in counts_there}
    saved = _slots_by_parameter(tensors)
    for name, slots in saved.items():
        _check_slots(name, slots, parameters.get(name))
    optimizer.state.clear()
    for name, slots in saved.items():
        parameter = parameters[name]
        device = dict.fromkeys(_SLOTS, parameter.device)
        if not counts_there[id(parameter)]:
            device["step"] = torch.device("cpu")
        optimizer.state[parameter] = {
            slot: tensor.detach().to(device[slot], copy=True) for slot, tensor in slots.items()
        }


def _slots_by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, slot = key.removeprefix("optimizer.").rpartition(".")
            saved.setdefault(name, {})[slot] = tensor
    return saved


def _check_slots(name: str, slots: Mapping[str, Tensor], parameter: Tensor | None) -> None:
    if parameter is None:
        reason = "the model has no such trainable parameter"
    elif set(slots) != set(_SLOTS):
        reason = f"it holds {sorted(slots)} instead of {list(_SLOTS)}"
    elif any(slots[slot].shape != parameter.shape for slot in _SLOTS[:2]):
        shape = tuple(slots["exp_avg"].shape)
        reason = f"its shape {shape} is not the parameter's {tuple(parameter.shape)}"
    else:
        return
    raise WeightsError(
        f"optimizer state of '{name}': {reason}; resume with the model and tasks of the saved run"
    )
