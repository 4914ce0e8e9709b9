"""Saved states that survive a kill: a folder is either the whole old or the whole new one.

A folder is written beside its final name (``state.tmp-<pid>``) and swapped in by two renames:
``state`` to ``state.old``, the new one to ``state``. A kill before the first rename leaves the old
state in place; one between the two leaves it in ``state.old``, where readers find it. Only writers
tidy up, so a reader never disturbs a run that is writing. One writer per folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sbrrt_fast.errors import WeightsError

TENSORS, META = "state.safetensors", "state.json"
_FORMAT = 1
_SLOTS = ("exp_avg", "exp_avg_sq", "step")


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which then takes the place of ``directory`` as a whole.

    If the body raises, ``directory`` stays as it was.
    """
    directory = Path(directory)
    _tidy(directory)
    new = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _flush(new)
    old = _old(directory)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def readable_directory(directory: Path) -> Path:
    """The folder that holds the last whole state of ``directory``; it changes nothing on disk.

    Raises:
        WeightsError: there is none.
    """
    for candidate in (Path(directory), _old(Path(directory))):
        if candidate.is_dir():
            return candidate
    raise WeightsError(f"{directory}: there is no saved state; train first, or check the path")


def _old(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.old")


def _tidy(directory: Path) -> None:
    """Finishes or undoes what a killed writer left."""
    old = _old(directory)
    if old.exists() and not directory.exists():
        old.rename(directory)
    for leftover in (old, *directory.parent.glob(f"{directory.name}.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def save_state(directory: Path, *, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes ``state.safetensors`` and ``state.json`` into ``directory``, replacing what it held.

    Args:
        directory: folder of the state.
        tensors: any dtypes and shapes on any device; no two of them may share memory.
        meta: JSON-serialisable values; floats come back bit for bit.
    """
    with atomic_directory(directory) as new:
        path = new / TENSORS
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
        check = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        record = {"format": _FORMAT, "files": {TENSORS: check}, "meta": meta}
        (new / META).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_state(
    directory: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and meta that ``save_state`` wrote, bit for bit.

    Raises:
        WeightsError: there is no state, or a file of it is missing, truncated or damaged.
    """
    folder = readable_directory(directory)
    record = _read_record(folder / META)
    path = folder / TENSORS
    _check_file(path, record["files"][TENSORS])
    try:
        return load_file(path, device=str(device)), record["meta"]
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except ValueError as error:  # JSON or UTF-8
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise _damaged(path, f"it is not a state of format {_FORMAT}")
    return record


def _check_file(path: Path, expected: Mapping[str, int]) -> None:
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise _damaged(path, f"it has {size} bytes instead of {expected['bytes']}")
    if _crc32(path) != expected["crc32"]:
        raise _damaged(path, "its checksum is wrong")


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path}: cannot be used, {reason}; restore the folder from a copy or train anew"
    )


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


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
    """Puts back what ``optimizer_tensors`` returned; other names in ``tensors`` are ignored.

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
