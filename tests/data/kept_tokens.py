"""Splits with and without the token cache, for its tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from sbrrt_fast.data.load import load_task
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.token_cache.cache import TokenCache
from tests.data.written import ENTAILMENT, LABELS

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3, on_bad_row="skip")
TENSORS = ("labels", "tokens", "token_types", "special", "starts")
MAX_LENGTH = 32


def load(
    data: Path,
    tokenizer: Tokenizer,
    store: TokenCache | None = None,
    *,
    task: TaskConfig = TASK,
    split="train",
    max_length: int = MAX_LENGTH,
    log=lambda line: None,
    **options,
) -> TokenizedTask:
    return load_task("mine", task, split, data, tokenizer, max_length, log, cache=store, **options)


def assert_same(one: TokenizedTask, other: TokenizedTask) -> None:
    assert (one.name, one.config, one.split) == (other.name, other.config, other.split)
    assert list(one.ids) == list(other.ids)
    assert list(one.texts) == list(other.texts)
    assert (one.num_truncated, one.report) == (other.num_truncated, other.report)
    for name in TENSORS:
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def entries(store: TokenCache) -> list[Path]:
    return sorted(path for path in store.folder.iterdir() if len(path.name) == 64)


def entry(store: TokenCache) -> Path:
    (only,) = entries(store)
    return only


def refuse(*args, **kwargs) -> None:
    raise AssertionError("it was tokenised again")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
