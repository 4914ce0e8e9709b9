"""Files and folders that are written whole or not at all.

A file is written beside its place and renamed. A folder is filled beside its place and swapped in
by two renames: a kill before the first leaves the old folder, one between the two leaves it under
the name it was moved to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError

from sbrrt_fast.errors import OutputError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a system error from writing ``path`` into one line.

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


def acquired(lock: filelock.BaseFileLock, seconds: float = 0) -> bool:
    """Whether a lock was to be had within so many seconds; the caller releases it.

    Raises:
        OutputError: its file cannot be written, or the file system has no locks.
    """
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=seconds)
        except filelock.Timeout:
            return False
        except NotImplementedError as error:  # of a file system without locks
            raise OSError(f"{lock.lock_file}: {error}") from None
    return True


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


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, as ``write_text`` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_file(path: Path) -> None:
    """Removes a file that ``replacing`` made, if it is there, and its killed writers' remains."""
    path.unlink(missing_ok=True)
    for unfinished in path.parent.glob(f"{path.name}.tmp-*-*"):
        unfinished.unlink()


def refuse_link(directory: Path) -> None:
    """OutputError if a folder that is to be replaced is a link."""
    if directory.is_symlink():
        raise OutputError(f"{directory}: is a link, which cannot be replaced; remove the link")


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

    Everything that ``directory`` held is deleted, so the caller looks first. If the body raises, it
    stays as it was. The parent folder must be there.

    Raises:
        OutputError: the system refuses, or ``directory`` is a link.
    """
    directory = Path(directory)
    refuse_link(directory)
    new, old = (directory.with_name(f".{directory.name}.{os.getpid()}.{x}") for x in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    with replacing_directory(directory, new, old):
        yield new
    with writing(old):
        if old.exists():
            shutil.rmtree(old)


@contextlib.contextmanager
def replacing_directory(directory: Path, new: Path, old: Path) -> Iterator[None]:
    """Makes ``new`` for the body to fill, moves ``directory`` to ``old``, and ``new`` in its place.

    If the body raises, ``new`` is removed and ``directory`` stays as it was.

    Raises:
        OutputError: the system refuses.
    """
    with writing(directory):
        new.mkdir()
        try:
            yield
            sync_tree(new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
        _sync(directory.parent)


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
