"""The blocks of docs/smart_anywhere.md run, one after the other, on a small model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.smart.examples import save_small_model

PAGE = Path(__file__).parents[2] / "docs" / "smart_anywhere.md"
NAME = '"bert-base-uncased"'


def test_the_page_s_blocks_run_and_print(tmp_path, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    save_small_model(tmp_path)
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7 and blocks[0].count(NAME) == 1
    names: dict = {}
    for block in blocks:
        exec(block.replace(NAME, repr(str(tmp_path))), names)
    printed = capsys.readouterr().out
    number = r"\d+(?:\.\d+)?(?:e-\d+)?"
    assert re.search(rf"task loss {number}, R_s {number}, by rows", printed)
    assert float(re.search(r"gain (\d+)", printed)[1]) > 2
    assert re.search(rf"base loss {number}, R_s {number}", printed)
    assert re.search(rf"D_Breg {number}, \d+ averaged weights", printed)
    assert names["smart"].random_state is not None
    assert issubclass(names["SmartTrainer"], names["Trainer"])
