"""What is found in task files once: their tokens, and the classes that they name."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from sbrrt_fast.data.sources import expanded
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.token_cache.entry import read_entry, write_entry
from sbrrt_fast.data.token_cache.folder_cache import MAX_BYTES, Caller, FolderCache
from sbrrt_fast.data.token_cache.key import cache_key, stamps, token_settings
from sbrrt_fast.data.token_cache.record import read_record, write_record
from sbrrt_fast.data.tokens import tokenised, watched
from sbrrt_fast.errors import DataError, OutputError

AUTO, NONE = "auto", "none"
MIN_BYTES = 1_000_000  # of files; fewer take a core about half a second
T = TypeVar("T")


@dataclass(frozen=True)
class TokenCache:
    """A folder of tokenised splits.

    Attributes:
        folder: holds an entry per split, and nothing else.
        is_required: whether it is an error that it cannot be written; else ``log`` hears of it.
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

        Returns:
            None where the folder cannot be written and need not be.

        Raises:
            OutputError: the folder cannot be written. DataError: see ``SplitRows.read``.
            ConfigError: ``max_length`` is too small.
        """

        def write(folder: Path, key: str) -> None:
            stream = rows.stream()
            chunks = tokenised(stream, rows.task, tokenizer, max_length)
            shown = watched(chunks, f"{rows.name} {rows.split}: tokens", rows.tick, progress)
            with closing(shown):  # and the files of rows with it, if the disk is full
                write_entry(folder, key, shown, lambda: stream.report)

        def read(folder: Path, key: str) -> TokenizedTask | None:
            return read_entry(folder, key, rows)

        return self._kept(rows, token_settings(tokenizer, max_length), read, write, log)

    def found(
        self, rows: SplitRows, find: Callable[[], dict[str, Any]], log: Callable[[str], object]
    ) -> dict[str, Any]:
        """What ``find`` finds in the files of a split, JSON values by name, or has found before.

        Raises:
            OutputError: the folder cannot be written. What ``find`` raises.
        """

        def write(folder: Path, key: str) -> None:
            write_record(folder, key, find())

        value = self._kept(
            rows, {"class_weights": rows.task.class_weights}, read_record, write, log
        )
        return find() if value is None else value

    def _kept(
        self,
        rows: SplitRows,
        settings: dict[str, Any],
        read: Callable[[Path, str], T | None],
        write: Callable[[Path, str], object],
        log: Callable[[str], object],
    ) -> T | None:
        """What ``read`` returns of the entry; None where it cannot be written and need not be.

        Args:
            settings: what it depends on besides the rows.
        """
        before = stamps(rows)
        key = cache_key(rows, settings)

        def write_checked(folder: Path) -> None:
            write(folder, key)
            _check_unchanged(rows, before)

        caller = Caller(f"{rows.name} {rows.split}", log, rows.tick)
        entries = FolderCache(self.folder, self.max_bytes)
        try:
            return entries.get(key, lambda folder: read(folder, key), write_checked, caller)
        except OutputError as error:
            if self.is_required:
                raise OutputError(f"token_cache: {error}; name another folder") from None
            log(f"{error}: nothing of {rows.name} {rows.split} is kept for later (token_cache)")
            return None


def _user_folder() -> Path | None:
    """Where ``auto`` keeps entries; None for a user without a home, and for ``none``."""
    if named := os.environ.get("SBRRT_CACHE"):
        return None if named == NONE else expanded(named) / "tokens"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "sbrrt_fast" / "tokens"


def _check_unchanged(rows: SplitRows, before: list[tuple[int, int, int]]) -> None:
    for path, stamp, now in zip(rows.sources, before, stamps(rows), strict=True):
        if stamp != now:
            raise DataError(f"{path}: changed while it was read; start again once it is complete")
