"""A folder of entries, each a folder that one process writes once and any number read.

An entry is filled as ``<key>.tmp-<pid>-<random>`` and renamed, so that none is ever half there. A
lock on the entry keeps several processes from doing the same work; the rename alone keeps it safe.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import filelock

from sbrrt_fast.data.token_cache.record import RECORD
from sbrrt_fast.errors import OutputError
from sbrrt_fast.files import acquired, make_folder, replacing_directory

MAX_BYTES = 32 << 30
_KEY = re.compile("[0-9a-f]{64}")
_POLL = 1.0  # seconds between two ticks of a process that waits
_POLLS_UNSAID = 3
T = TypeVar("T")


@dataclass(frozen=True)
class Caller:
    """Who wants an entry.

    Attributes:
        title: what for, in messages.
        log: hears of an entry that is damaged, and of waiting for another process.
        tick: called every second of waiting.
    """

    title: str
    log: Callable[[str], object]
    tick: Callable[[], object]


@dataclass(frozen=True)
class FolderCache:
    """Entries by key, 64 hexadecimal digits.

    Attributes:
        folder: holds nothing else.
        max_bytes: the entries used least recently go where all together have more.
    """

    folder: Path
    max_bytes: int = MAX_BYTES

    def get(
        self,
        key: str,
        read: Callable[[Path], T | None],
        write: Callable[[Path], object],
        caller: Caller,
    ) -> T:
        """What ``read`` returns of an entry, which is written where there is none.

        Args:
            read: takes the entry's folder; None where there is none, ValueError or OSError where
                it is damaged.
            write: fills an empty folder.

        Raises:
            OutputError: the folder cannot be written. What ``write`` raises.
        """
        value = self._read(key, read, lambda line: None)
        if value is not None:
            return value
        make_folder(self.folder)
        with self._locked(key, caller):
            value = self._read(key, read, caller.log)
            if value is None:
                self._write(key, write)
                value = self._read(key, read, caller.log)
        if value is None:
            raise OutputError(f"{self.folder / key}: cannot be written (it was gone at once)")
        self._evict(key)
        return value

    def _read(
        self, key: str, read: Callable[[Path], T | None], log: Callable[[str], object]
    ) -> T | None:
        """An entry that is there and whole; ``log`` hears of one that is not whole."""
        try:
            value = read(self.folder / key)
        except (OSError, ValueError) as error:
            log(f"{self.folder / key}: cannot be used ({error}); it is written again")
            return None
        if value is not None:
            with contextlib.suppress(OSError):  # it may be somebody else's
                os.utime(self.folder / key / RECORD)
        return value

    def _write(self, key: str, write: Callable[[Path], object]) -> None:
        """Makes an entry; it takes the place of a damaged one."""
        for name in self._unfinished(key):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        new, old = (self.folder / f"{key}.tmp-{_unique()}" for _ in range(2))
        with replacing_directory(self.folder / key, new, old):
            write(new)
        shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, key: str, caller: Caller) -> Iterator[None]:
        """A block that one process at a time is in; the others wait, and tick."""
        lock = self._lock(key)
        num_polls = 0
        while not acquired(lock, _POLL):
            caller.tick()
            num_polls += 1
            if num_polls == _POLLS_UNSAID:
                caller.log(f"{caller.title}: waiting for another process that reads the same rows")
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / f"{key}.lock")

    def _evict(self, kept: str) -> None:
        """Removes what killed writers left, and the entries that are too many, oldest first.

        Whoever has mapped an entry keeps it.
        """
        with contextlib.suppress(OSError, OutputError):  # another process does the same
            for name in self._unfinished():
                lock = self._lock(name[:64])
                if acquired(lock):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                    lock.release()
            entries = sorted(self._entries(kept))
            total = sum(num_bytes for _, num_bytes, _ in entries) + _size_of(self.folder / kept)
            for _, num_bytes, name in entries:
                if total > self.max_bytes:
                    self._remove(name)
                    total -= num_bytes

    def _entries(self, kept: str) -> Iterator[tuple[float, int, str]]:
        """(time of the last use, bytes, name) of all entries but one."""
        for path in self.folder.iterdir():
            if _KEY.fullmatch(path.name) and path.name != kept and (path / RECORD).is_file():
                yield (path / RECORD).stat().st_mtime, _size_of(path), path.name

    def _remove(self, name: str) -> None:
        """Takes an entry's name away first, so that nobody meets it half removed."""
        removed = self.folder / f"{name}.tmp-{_unique()}"
        (self.folder / name).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _unfinished(self, key: str = "*") -> list[str]:
        """Folders that a killed process left; those of a key are such while its lock is held."""
        return [p.name for p in self.folder.glob(f"{key}.tmp-*") if _KEY.match(p.name)]


def _unique() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
