"""The corpus of a run, from the texts of tasks or from text files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.cells import is_visible
from sbrrt_fast.data.formats.compression import open_bytes
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Split, TaskConfig
from sbrrt_fast.data.text_file import check_text_file, open_text, read_lines
from sbrrt_fast.errors import DataError
from sbrrt_fast.pretraining.corpus import Corpus, CorpusBuilder
from sbrrt_fast.training.build import complete_config, load_splits

Log = Callable[[str], object]
_LINES_AT_ONCE = 4096


def read_tasks(
    config: RunConfig,
    splits: tuple[Split, ...],
    tokenizer: Tokenizer,
    max_positions: int,
    builder: CorpusBuilder,
    *,
    as_pairs: bool,
    log: Log = print,
) -> Corpus:
    """The texts of some splits of all tasks.

    Args:
        config: tasks and where their files are. builder: empty.
        as_pairs: the two texts of a pair are a row of two lines, instead of two rows.

    Raises:
        DataError, ConfigError: a file cannot be read; see ``load_splits``.
    """
    config = complete_config(config, log)
    config = replace(config, tasks={n: _one_by_one(task) for n, task in config.tasks.items()})
    for split in splits:
        tasks = load_splits(config, tokenizer, split, max_positions, log)
        for source, task in enumerate(tasks.values()):
            builder.add_texts(_texts(task, as_pairs), source)
    return builder.corpus()


def _one_by_one(task: TaskConfig) -> TaskConfig:
    """The task with a sequence per text, as most pair tasks have it already."""
    if task.encoding != "cross":
        return task
    return replace(task, encoding="siamese")


def _texts(task: TokenizedTask, as_pairs: bool) -> Iterator[list[NDArray[np.int32]]]:
    """The tokens of each example's texts, without [CLS] and [SEP]."""
    arrays = task.arrays
    tokens, starts, is_text = arrays["tokens"], arrays["starts"], ~arrays["special"]
    each = task.config.sequences_per_example
    for first in range(0, task.num_sequences, each):
        spans = [slice(starts[s], starts[s + 1]) for s in range(first, first + each)]
        lines = [tokens[span][is_text[span]] for span in spans]
        yield from [lines] if as_pairs or each == 1 else ([line] for line in lines)


def read_files(paths: tuple[Path, ...], tokenizer: Tokenizer, builder: CorpusBuilder) -> Corpus:
    """The documents of text files: a blank line, or the end of a file, ends one.

    Raises:
        DataError: a file is not there, is no UTF-8 text, or is empty.
    """
    for source, path in enumerate(paths):
        path = path.expanduser()
        try:
            check_text_file(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; check --text") from None
        with open_bytes(path) as file, open_text(file) as text:
            _add_documents(_tokenised(read_lines(path, text), tokenizer), builder, source)
    return builder.corpus()


def _tokenised(lines: Iterator[str], tokenizer: Tokenizer) -> Iterator[NDArray[np.int32] | None]:
    """The tokens of each line; None for a blank one."""
    while window := list(islice(lines, _LINES_AT_ONCE)):
        encodings = tokenizer.encode_batch_fast(window, add_special_tokens=False)
        for line, encoding in zip(window, encodings, strict=True):
            yield np.array(encoding.ids, dtype=np.int32) if is_visible(line) else None


def _add_documents(
    lines: Iterator[NDArray[np.int32] | None], builder: CorpusBuilder, source: int
) -> None:
    is_over = False
    while not is_over:
        document = []
        for line in lines:
            if line is None:
                break
            document.append(line)
        else:
            is_over = True
        if document:
            builder.add_document(document, source)
