"""The scripts of examples/, and a model on disk that is small enough to run them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from tests.smart.stock_models import bert

FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """A script of fewer than 40 lines, as a module."""
    path = FOLDER / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_small_model(folder: Path) -> None:
    """BERT with two classes, and a tokenizer of nine words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special, words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], ["a", "joy", "to", "slow", "and"]
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    bert(2).save_pretrained(folder)
