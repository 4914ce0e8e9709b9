"""The folder of a run: whose it is, who writes to it, and what may be removed from it.

``run.json`` makes a folder a run's, and says which process started it last. A lock on ``.lock``
keeps a second process away; the system gives it back when its process ends, however it ends. What
is removed on ``--overwrite`` are the files that runs write: by name at the top, by their list of
checksums in ``best``, ``last``, ``state`` and below ``models``, by their ending in ``tensorboard``,
and predictions that ``run.json`` names. Anything else in the folder stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from sbrrt_fast.checksums import readable_directory, remove_directory
from sbrrt_fast.errors import OutputError, SbrrtError, WeightsError
from sbrrt_fast.files import acquired, make_folder, remove_file, write_json, writing
from sbrrt_fast.training.kept_models import MODELS, remove_models
from sbrrt_fast.training.logging import EVENT_SUFFIX, EVENTS, FINAL, LINES

RUN, CONFIG, LOCK = "run.json", "config.yaml", ".lock"
PRETRAIN_CONFIG = "pretrain.yaml"  # in place of ``CONFIG``, of a run that no other command takes
STATE, BEST, LAST = "state", "best", "last"
_FORMAT = 1


def is_run(output: Path) -> bool:
    """Whether a folder is one that training made."""
    return _read_record(output) is not None


def is_finished(output: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    return (output / FINAL).exists()


def check_output(output: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Looks whether a run may write to ``output``; changes nothing.

    Raises:
        OutputError: it is no folder, or holds other things than a run.
        SbrrtError: it holds a run already.
        WeightsError: on ``resume`` there is no run.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; give --output a folder")
    if not is_run(output):
        if resume:
            raise WeightsError(
                f"{output}: there is no run with a saved state to resume; check --output, or train "
                "without --resume"
            )
        _check_empty(output)
    elif not (resume or overwrite):
        raise SbrrtError(
            f"{output}: holds a run already; choose another --output, or pass --resume to "
            "continue it or --overwrite to replace it"
        )


def check_space(output: Path, num_bytes: int) -> None:
    """OutputError where the disk has no room for ``num_bytes`` once an old run's files are gone."""
    folders = (output / name for name in (BEST, LAST, STATE, MODELS))
    held = sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())
    if (free := shutil.disk_usage(output).free) + held < num_bytes:
        raise OutputError(
            f"{output}: the run saves up to {num_bytes / 2**20:,.0f} MiB and its disk has "
            f"{free / 2**20:,.0f} MiB left; make room or choose another --output"
        )


@contextlib.contextmanager
def open_output(output: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Holds ``output`` for this process; it is a run's folder inside the block.

    The old run is left in place until ``start_run``.

    Raises:
        SbrrtError: see ``check_output``; or another process is writing there.
    """
    check_output(output, resume=resume, overwrite=overwrite)
    make_folder(output)
    with _locked(output):
        check_output(output, resume=resume, overwrite=overwrite)
        yield


def start_run(output: Path, *, resume: bool = False, launch: str | None = None) -> str:
    """Makes a folder this process's run; a new run removes an old one's files first.

    A finished run that is resumed, to be extended, is not finished any more.

    Args:
        launch: the name of the torchrun that started this process; see ``launch_of``.

    Returns:
        the run's id, 16 hexadecimal digits; it stays where the run is resumed.
    """
    with writing(output):
        if resume:
            remove_file(output / FINAL)
        else:
            _remove_run(output)
    record = _read_record(output) or {"format": _FORMAT, "predictions": []}
    if not resume or "id" not in record:
        record["id"] = secrets.token_hex(8)
    record["process"] = {"pid": os.getpid(), "host": socket.gethostname()}
    record.pop("launch", None)
    if launch is not None:
        record["launch"] = launch
    _write_record(output, record)
    return str(record["id"])


def launch_of(output: Path) -> str | None:
    """The name of the torchrun that trained last in a run's folder; None if it was none."""
    return (_read_record(output) or {}).get("launch")


def has_state(output: Path) -> bool:
    """Whether a run has a state to go on from."""
    try:
        readable_directory(output / STATE)
    except WeightsError:
        return False
    return True


def note_predictions(output: Path, path: Path) -> None:
    """Remembers that a file below a run's folder was made from the run, so it goes with it."""
    record = _read_record(output)
    name = path.relative_to(output).as_posix()
    if record is not None and name not in record["predictions"]:
        _write_record(output, record | {"predictions": [*record["predictions"], name]})


def _check_empty(output: Path) -> None:
    with writing(output):
        names = sorted(p.name for p in output.iterdir()) if output.exists() else []
    if names := [name for name in names if name != LOCK]:
        raise OutputError(
            f"{output}: is not empty and not the folder of a run (it holds {names[0]}); choose "
            "another --output"
        )


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    lock = filelock.FileLock(output / LOCK)
    if not acquired(lock):
        raise SbrrtError(
            f"{output}: {_holder(output)} is training there; wait for it, or choose another "
            "--output"
        )
    try:
        yield
    finally:
        lock.release()


def _holder(output: Path) -> str:
    process = (_read_record(output) or {}).get("process") or {}
    if not process:
        return "another process"
    return f"process {process.get('pid')} on {process.get('host')}"


def _remove_run(output: Path) -> None:
    """Removes an earlier run's files, scores first, so that none outlives its weights."""
    record = _read_record(output) or {}
    for name in (FINAL, *record.get("predictions", ()), LINES, CONFIG, PRETRAIN_CONFIG):
        remove_file(output / name)
    for name in (STATE, BEST, LAST):
        remove_directory(output / name)
    remove_models(output)
    for path in (output / EVENTS).glob(f"*{EVENT_SUFFIX}"):
        path.unlink()
    for name in {EVENTS, *(str(PurePosixPath(n).parent) for n in record.get("predictions", ()))}:
        with contextlib.suppress(OSError):  # somebody's own files keep it
            (output / name).rmdir()


def _read_record(output: Path) -> dict[str, Any] | None:
    """The object in ``run.json``; None where there is none, or none of ours."""
    try:
        record = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return None
    names = record.get("predictions")
    return record if isinstance(names, list) and all(map(_is_below, names)) else None


def _is_below(name: Any) -> bool:
    path = PurePosixPath(str(name))
    return isinstance(name, str) and not path.is_absolute() and ".." not in path.parts


def _write_record(output: Path, record: dict[str, Any]) -> None:
    write_json(output / RUN, {"made_by": "sbrrt_fast", **record})
