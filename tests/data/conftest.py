"""A task's files and an empty token cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sbrrt_fast.data.token_cache.cache import TokenCache
from tests.data.written import ROWS, write_table
from tests.helpers import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    bad = ("bad", "no label", "in this row", "")
    write_table(folder / "train.csv", [*ROWS[:5], bad, *ROWS[5:]])
    write_table(folder / "dev.csv", ROWS[:4])
    return folder


@pytest.fixture
def store(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "store")
