"""Files and folders that are written whole or not at all, and that nobody else's are removed for.

A text file is written beside its place and renamed. A folder is filled beside its place
(``state.tmp-<pid>``) and swapped in by two renames: ``state`` to ``state.old``, the new one to
``state``. A kill before the first rename leaves the old folder; one between the two leaves it in
``state.old``, where readers find it. Only writers tidy up, so a reader never disturbs a run that is
writing. One writer per folder.

Such a folder lists what was written into it in ``checksums.json``, with sizes, checksums and a
checksum of the list itself. It says what is damaged, and what may be removed: a file that the list
does not name is somebody's own, and moves into the new folder when the old one goes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from sbrrt_fast.errors import OutputError, WeightsError

CHECKSUMS = "checksums.json"
_FORMAT = 1


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing ``path`` into one line.

    Raises:
        OutputError: naming the file or folder and the system's reason.
    """
    try:
        yield
    except OSError as error:
        name = error.filename or path
        raise OutputError(f"{name}: cannot be written ({error.strerror or error})") from error
    except SafetensorError as error:
        reason = re.sub(r".*I/O error: (.*) \(os error \d+\).*", r"\1", str(error), flags=re.DOTALL)
        raise OutputError(f"{path}: cannot be written ({reason})") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a file to write, which then takes the place of ``path`` as a whole.

    Raises:
        OutputError: the system refuses; what was there before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    with writing(path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file as a whole, down to the disk; its folder must be there.

    Raises:
        OutputError: it cannot be written; what was there before is unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_file(path: Path) -> None:
    """Removes a file that ``replacing`` made, if it is there, and what its killed writers left."""
    path.unlink(missing_ok=True)
    for unfinished in path.parent.glob(f"{path.name}.tmp-*-*"):
        unfinished.unlink()


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. OutputError if it cannot be made."""
    with writing(path):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            file = next(p for p in (path, *path.parents) if p.exists() and not p.is_dir())
            raise OutputError(f"{path}: cannot be made, {file} is a file; name another") from None


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which then takes the place of ``directory`` as a whole.

    If the body raises, ``directory`` stays as it was. Files in ``directory`` that were not written
    this way are kept. The parent folder must be there.

    Raises:
        OutputError: the system refuses, or a file of somebody else's has a name that is needed.
    """
    directory = Path(directory)
    new = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    with writing(directory):
        _refuse_link(directory)
        _tidy(directory)
        new.mkdir()
        try:
            (new / CHECKSUMS).touch()
            yield new
            _write_checksums(new)
            sync_tree(new)
            _check_own_files(directory, new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _swap(new, directory)


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


def remove_directory(directory: Path) -> None:
    """Removes what was written into ``directory``, its ``.old`` and what a killed writer left.

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


# Swapping


def _old(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.old")


def _refuse_link(directory: Path) -> None:
    if directory.is_symlink():
        raise OutputError(f"{directory}: is a link, which cannot be replaced; remove the link")


def _swap(new: Path, directory: Path) -> None:
    old = _old(directory)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    _sync(directory.parent)
    _retire(old, directory)


def _tidy(directory: Path) -> None:
    """Finishes or undoes what a killed writer left."""
    old = _old(directory)
    if old.is_dir() and not directory.exists():
        old.rename(directory)
    _retire(old, directory)
    _remove_unfinished(directory)


def _retire(old: Path, directory: Path) -> None:
    """Removes a replaced folder; what others put into it moves to the one in its place."""
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
    """Paths below a folder of the files that nobody wrote through ``atomic_directory``."""
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
    record = {"format": _FORMAT, "files": files, "crc32": _crc32_of_list(files)}
    (directory / CHECKSUMS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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


# Down to the disk


def sync_tree(directory: Path) -> None:
    """Sees to it that a folder and all below it are on the disk."""
    for path in (*directory.rglob("*"), directory):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot do this for folders
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
