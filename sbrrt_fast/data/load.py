"""A split of a task, read and tokenised, or as it was tokenised before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from sbrrt_fast.data.reader import nothing
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.store import MAX_LENGTH, TokenizedTask
from sbrrt_fast.data.task import Split, TaskConfig
from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.data.tokens import tokenised, watched


def load_task(
    name: str,
    task_config: TaskConfig,
    split: Split,
    data_dir: str | Path | None,
    tokenizer: Tokenizer,
    max_length: int,
    log: Callable[[str], object] = print,
    limit_name: str = MAX_LENGTH,
    *,
    cache: TokenCache | None = None,
    tick: Callable[[], object] = nothing,
    progress: bool = True,
) -> TokenizedTask:
    """Read and tokenise one split; ``log`` hears of skipped rows, labels that are not
    there, and truncation.

    Args:
        data_dir: folder of the task files; the built-in sample when None.
        limit_name: what set ``max_length``, for messages.
        cache: where tokens are kept, and taken from where they are; the split is the same.
        tick: called every few thousand rows, and every second while another process tokenises
            the split.
        progress: whether a bar may be shown, for more than two seconds on a terminal.

    Raises:
        DataError: see ``splits.SplitRows``.
        ConfigError: ``max_length`` is too small.
        OutputError: the cache cannot be written, and is required.
    """
    rows = SplitRows(name, task_config, split, data_dir, tick)
    task = None
    if cache is not None and cache.takes(rows):
        task = cache.load(rows, tokenizer, max_length, log, progress)
    if task is None:
        task = _tokenised(rows, tokenizer, max_length, progress)
    for line in _lines(task, limit_name):
        log(line)
    return task


def _tokenised(
    rows: SplitRows, tokenizer: Tokenizer, max_length: int, progress: bool
) -> TokenizedTask:
    """The split in this process's own memory."""
    examples, report = rows.read()
    chunks = tokenised(examples, rows.task, tokenizer, max_length)
    chunks = watched(chunks, f"{rows.name} {rows.split}: tokens", rows.tick, progress)
    task = TokenizedTask.from_chunks(rows.name, rows.task, rows.split, chunks)
    return replace(task, report=report)


def _lines(task: TokenizedTask, limit_name: str) -> list[str]:
    report = task.report
    lines = [] if report is None else [report.message() if report.num_skipped else "", report.note]
    return [line for line in (*lines, task.message(limit_name)) if line]
