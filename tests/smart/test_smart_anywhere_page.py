"""The blocks of docs/smart_anywhere.md run, one after the other, on a small model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.smart.stock_models import bert

PAGE = Path(__file__).parents[2] / "docs" / "smart_anywhere.md"
NAME = '"bert-base-uncased"'


def save_small_model(folder: Path) -> None:
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


def test_the_page_s_blocks_run_and_print(tmp_path, capsys):
    pytest.importorskip("transformers")
    save_small_model(tmp_path)
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6 and blocks[0].count(NAME) == 1
    names: dict = {}
    for block in blocks:
        exec(block.replace(NAME, repr(str(tmp_path))), names)
    printed = capsys.readouterr().out
    number = r"\d+(?:\.\d+)?(?:e-\d+)?"
    assert re.search(rf"task loss {number}, R_s {number}, by rows", printed)
    assert float(re.search(r"gain (\d+)", printed)[1]) > 2
    assert re.search(rf"D_Breg {number}, \d+ averaged weights", printed)
    assert names["smart"].random_state is not None
    assert issubclass(names["SmartTrainer"], names["Trainer"])
