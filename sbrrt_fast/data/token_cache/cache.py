"""Tokenised splits on disk: one process writes an entry, all map it into memory.

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

import filelock
from tokenizers import Tokenizer

from sbrrt_fast.data.sources import expanded
from sbrrt_fast.data.splits import SplitRows, SplitStream
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.token_cache.entry import ENTRY, read_entry, write_entry
from sbrrt_fast.data.token_cache.key import cache_key, stamps
from sbrrt_fast.data.tokens import tokenised, watched
from sbrrt_fast.errors import DataError, OutputError
from sbrrt_fast.files import make_folder, replacing_directory, writing

AUTO, NONE = "auto", "none"
MIN_BYTES = 1_000_000  # of files; fewer take a core 2 seconds at most
MAX_BYTES = 32 << 30
_KEY = re.compile("[0-9a-f]{64}")
_POLL = 1.0  # seconds between two ticks of a process that waits
_POLLS_UNSAID = 3


@dataclass(frozen=True)
class TokenCache:
    """A folder of tokenised splits.

    Attributes:
        folder: holds an entry per split, and nothing else.
        is_required: whether it is an error that it cannot be written.
        min_bytes: splits whose files have fewer are left out.
        max_bytes: the entries used least recently go where all together have more.
    """

    folder: Path
    is_required: bool = True
    min_bytes: int = 0
    max_bytes: int = MAX_BYTES

    @classmethod
    def of(cls, setting: str) -> TokenCache | None:
        """The cache of a run's ``token_cache``: ``auto``, ``none`` (None), or a folder."""
        if setting == NONE:
            return None
        if setting != AUTO:
            return cls(expanded(setting))
        folder = _user_folder()
        return folder and cls(folder, is_required=False, min_bytes=MIN_BYTES)

    def takes(self, rows: SplitRows) -> bool:
        """Whether it keeps a split: one of files, which are there, and large enough."""
        are_files = [isinstance(s, Path) and os.path.isfile(s) for s in rows.sources]
        return all(are_files) and sum(map(os.path.getsize, rows.sources)) >= self.min_bytes

    def load(
        self,
        rows: SplitRows,
        tokenizer: Tokenizer,
        max_length: int,
        log: Callable[[str], object],
        progress: bool,
    ) -> TokenizedTask | None:
        """The split, from its entry, which is written where there is none.

        ``log`` hears of an entry that is damaged, and of waiting for another process.

        Returns:
            None where the folder cannot be written and need not be; ``log`` hears why.

        Raises:
            OutputError: the folder cannot be written. DataError: see ``SplitRows.read``.
            ConfigError: ``max_length`` is too small.
        """
        source = _Source(rows, tokenizer, max_length, log, progress)
        try:
            return self._load(source)
        except OutputError as error:
            if self.is_required:
                raise OutputError(f"token_cache: {error}; name another folder") from None
            log(f"{error}: tokens of {rows.name} {rows.split} are not kept (token_cache)")
            return None

    def _load(self, source: _Source) -> TokenizedTask:
        before = stamps(source.rows)
        key = cache_key(source.rows, source.tokenizer, source.max_length)
        if task := self._read(key, source, lambda line: None):
            return task
        make_folder(self.folder)
        with self._locked(key, source):
            task = self._read(key, source, source.log)
            if task is None:
                self._write(key, source, before)
                task = self._read(key, source, source.log)
        if task is None:
            raise OutputError(f"{self.folder / key}: cannot be written (it was gone at once)")
        self._evict(key)
        return task

    def _read(
        self, key: str, source: _Source, log: Callable[[str], object]
    ) -> TokenizedTask | None:
        """An entry that is there and whole; ``log`` hears of one that is not whole."""
        folder = self.folder / key
        try:
            task = read_entry(folder, key, source.rows, source.rows.tick)
        except (OSError, ValueError) as error:
            log(f"{folder}: cannot be used ({error}); the texts are tokenised again")
            return None
        if task is not None:
            with contextlib.suppress(OSError):  # it may be somebody else's
                os.utime(folder / ENTRY)
        return task

    def _write(self, key: str, source: _Source, before: list[tuple[int, int, int]]) -> None:
        """Makes the entry of a split; it takes the place of a damaged one."""
        for name in self._unfinished(key):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        new, old = (self.folder / f"{key}.tmp-{_unique()}" for _ in range(2))
        stream = source.rows.stream()
        with replacing_directory(self.folder / key, new, old):
            write_entry(new, key, source.chunks(stream), lambda: stream.report)
            _check_unchanged(source.rows, before)
        shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, key: str, source: _Source) -> Iterator[None]:
        """A block that one process at a time is in; the others wait, and tick."""
        lock = filelock.FileLock(self.folder / f"{key}.lock")
        num_polls = 0
        while not _acquired(lock, _POLL):
            source.rows.tick()
            num_polls += 1
            if num_polls == _POLLS_UNSAID:
                source.log(f"{source.title}: another process tokenises it, waiting")
        try:
            yield
        finally:
            lock.release()

    def _evict(self, kept: str) -> None:
        """Removes what killed writers left, and the entries that are too many, oldest first.

        Whoever has mapped an entry keeps it.
        """
        with contextlib.suppress(OSError, OutputError):  # another process does the same
            for name in self._unfinished():
                lock = filelock.FileLock(self.folder / f"{name[:64]}.lock")
                if _acquired(lock, 0):
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
            if _KEY.fullmatch(path.name) and path.name != kept and (path / ENTRY).is_file():
                yield (path / ENTRY).stat().st_mtime, _size_of(path), path.name

    def _remove(self, name: str) -> None:
        """Takes an entry's name away first, so that nobody meets it half removed."""
        removed = self.folder / f"{name}.tmp-{_unique()}"
        (self.folder / name).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _unfinished(self, key: str = "*") -> list[str]:
        """Folders that a killed process left; those of a key are such while its lock is held."""
        return [p.name for p in self.folder.glob(f"{key}.tmp-*") if _KEY.match(p.name)]


@dataclass(frozen=True)
class _Source:
    """What is tokenised, and who hears of it."""

    rows: SplitRows
    tokenizer: Tokenizer
    max_length: int
    log: Callable[[str], object]
    progress: bool

    @property
    def title(self) -> str:
        return f"{self.rows.name} {self.rows.split}"

    def chunks(self, stream: SplitStream) -> Iterator:
        chunks = tokenised(stream, self.rows.task, self.tokenizer, self.max_length)
        return watched(chunks, f"{self.title}: tokens", self.rows.tick, self.progress)


def _user_folder() -> Path | None:
    """Where ``auto`` keeps entries; None for a user without a home."""
    if named := os.environ.get("SBRRT_CACHE"):
        return expanded(named) / "tokens"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "sbrrt_fast" / "tokens"


def _acquired(lock: filelock.BaseFileLock, seconds: float) -> bool:
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=seconds)
        except filelock.Timeout:
            return False
        except NotImplementedError as error:  # of a file system without locks
            raise OSError(f"{lock.lock_file}: {error}") from None
    return True


def _check_unchanged(rows: SplitRows, before: list[tuple[int, int, int]]) -> None:
    for path, stamp, now in zip(rows.sources, before, stamps(rows), strict=True):
        if stamp != now:
            raise DataError(f"{path}: changed while it was read; start again once it is complete")


def _unique() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
