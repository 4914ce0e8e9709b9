"""Folders of a run that list their files, so that nobody else's are ever removed.

Such a folder lists its files in ``checksums.json``, with sizes, checksums and a checksum of the
list itself. The list says what is damaged, and what may be removed: a file that it does not name is
somebody's own, and moves into the new folder when the old one goes.

``state`` is filled as ``state.tmp-<pid>`` and the folder before it moved to ``state.old``, where
readers find it after a kill between the two renames. Only writers tidy up, so a reader never
disturbs a run that is writing. One writer per folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sbrrt_fast.errors import OutputError, WeightsError
from sbrrt_fast.files import (
    refuse_link,
    replacing_directory,
    write_json,
    write_text,
    writing,
)

CHECKSUMS = "checksums.json"
_FORMAT = 1


@contextlib.contextmanager
def checksummed_directory(directory: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which then takes the place of ``directory`` as a whole.

    If the body raises, ``directory`` stays as it was. Files in ``directory`` that were not written
    this way are kept. The parent folder must be there.

    Raises:
        OutputError: the system refuses, or a file of somebody else's has a name that is needed.
    """
    directory = Path(directory)
    new = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    refuse_link(directory)
    with writing(directory):
        _tidy(directory)
        with replacing_directory(directory, new, _old(directory)):
            (new / CHECKSUMS).touch()
            yield new
            _write_checksums(new)
            _check_own_files(directory, new)
        _retire(_old(directory), directory)


def readable_directory(directory: Path) -> Path:
    """The folder that holds the last whole state of ``directory``; it changes nothing on disk.

    Raises:
        WeightsError: there is none.
    """
    for candidate in (Path(directory), _old(Path(directory))):
        if candidate.is_dir():
            return candidate
    raise WeightsError(f"{directory}: there is no saved state; train first, or check the path")


def check_directory(directory: Path) -> None:
    """Checks every file that was written into a folder against its checksum.

    Raises:
        WeightsError: naming the first file that is missing, truncated or damaged.
    """
    for name, expected in _read_checksums(directory / CHECKSUMS).items():
        path = directory / name
        if not path.is_file():
            raise damaged(path, "the file is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise damaged(path, f"it has {size} bytes instead of {expected['bytes']}")
        if _crc32_of(path) != expected["crc32"]:
            raise damaged(path, "its checksum is wrong")


def replace_text(directory: Path, name: str, text: str) -> None:
    """Replaces one file of a folder that ``checksummed_directory`` filled, or adds it.

    The folder is replaced as a whole: every other file is the same one, under a second name until
    the old folder is gone, or a copy where the file system has no hard links.

    Raises:
        WeightsError: the folder's list is missing or damaged. OutputError: as in
            ``checksummed_directory``.
    """
    names = [other for other in _read_checksums(directory / CHECKSUMS) if other != name]
    with checksummed_directory(directory) as new:
        for other in names:
            (new / other).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(directory / other, new / other)
            except OSError:
                shutil.copyfile(directory / other, new / other)
        write_text(new / name, text)


def remove_directory(directory: Path) -> None:
    """Removes a folder's listed files, its ``.old`` and the remains of a killed writer.

    Files that ``checksums.json`` does not list stay where they are.
    """
    for folder in (directory, _old(directory)):
        if folder.is_dir() and not folder.is_symlink():
            _remove_written(folder)
    _remove_unfinished(directory)


def damaged(path: Path, reason: str) -> WeightsError:
    """The error for a saved file that cannot be used."""
    return WeightsError(
        f"{path}: cannot be used, {reason}; restore the folder from a copy or train anew"
    )


# Own files


def _old(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.old")


def _tidy(directory: Path) -> None:
    """Finishes or undoes a killed writer's work."""
    old = _old(directory)
    if old.is_dir() and not directory.exists():
        old.rename(directory)
    _retire(old, directory)
    _remove_unfinished(directory)


def _retire(old: Path, directory: Path) -> None:
    """Removes a replaced folder; others' files in it move to the one in its place."""
    if not old.is_dir():
        return
    for name in _own_files(old):
        target = directory / name
        if target.exists():
            raise _in_the_way(old / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(target)
    _remove_written(old)


def _check_own_files(directory: Path, new: Path) -> None:
    """OutputError if somebody's own file in ``directory`` has the name of one in ``new``."""
    for name in _own_files(directory) if directory.is_dir() else ():
        if (new / name).exists():
            raise _in_the_way(directory / name)


def _in_the_way(path: Path) -> OutputError:
    return OutputError(
        f"{path}: was not written by this program, or was changed, and is in the way; move it"
    )


def _own_files(directory: Path) -> list[str]:
    """Paths below a folder of the files that nobody wrote through ``checksummed_directory``."""
    written = {CHECKSUMS, *_listed(directory)}
    paths = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(directory).as_posix() for path in paths} - written)


def _remove_written(directory: Path) -> None:
    for name in (*_listed(directory), CHECKSUMS):
        (directory / name).unlink(missing_ok=True)
    for folder in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
        _remove_if_empty(folder)
    _remove_if_empty(directory)


def _remove_unfinished(directory: Path) -> None:
    """Removes the folders that killed writers were filling: they carry an empty list."""
    for folder in directory.parent.glob(f"{directory.name}.tmp-*"):
        if (folder / CHECKSUMS).is_file() and not (folder / CHECKSUMS).is_symlink():
            shutil.rmtree(folder)
        else:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


# Checksums


def _write_checksums(directory: Path) -> None:
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    files = {
        name: {"bytes": (directory / name).stat().st_size, "crc32": _crc32_of(directory / name)}
        for name in names
        if name != CHECKSUMS
    }
    write_json(
        directory / CHECKSUMS,
        {"format": _FORMAT, "files": files, "crc32": _crc32_of_list(files)},
    )


def _read_checksums(path: Path) -> dict[str, dict[str, int]]:
    """The list of a folder; WeightsError if it is missing, damaged or names files elsewhere."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(path, "the file is missing") from None
    except OSError as error:
        raise damaged(path, error.strerror) from None
    except (ValueError, RecursionError):  # JSON or UTF-8
        raise damaged(path, "it is not the JSON that was written") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise damaged(path, f"it is not a list of format {_FORMAT}")
    files = record.get("files")
    if record.get("crc32") != _crc32_of_list(files) or not _is_list_of_files(files):
        raise damaged(path, "its checksum is wrong")
    return files


def _is_list_of_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "crc32"} and _is_below(name)
        for name, entry in files.items()
    )


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _listed(directory: Path) -> list[str]:
    """The files that the folder's list names; none where there is no list that can be trusted."""
    try:
        return list(_read_checksums(directory / CHECKSUMS))
    except WeightsError:
        return []


def _crc32_of_list(files: Any) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _crc32_of(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
