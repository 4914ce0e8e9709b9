"""Small encoders, of transformers and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from tests.model.models import TINY, randomise


@pytest.fixture(scope="module")
def original() -> transformers.BertModel:
    return randomise(transformers.BertModel(transformers.BertConfig(**TINY)))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A folder that transformers wrote."""
    original.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours() -> MiniBert:
    return randomise(MiniBert(BertConfig(**TINY), pooling="cls"))


@pytest.fixture
def cased_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Good", "good", "##ness", "né", "ne"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer
