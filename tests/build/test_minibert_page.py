"""docs/minibert.md is one program in its order, and prints what it should."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from tests.build.markdown import ROOT, blocks_of
from tests.helpers import tiny_backbone

HAS_PEFT = importlib.util.find_spec("peft") is not None  # an extra; tests/model/test_peft.py


def test_the_page_runs(tmp_path):
    tiny_backbone(tmp_path / "bert-base-uncased")
    texts = [b.text for b in blocks_of(ROOT / "docs" / "minibert.md") if b.language == "python"]
    assert len(texts) == 4
    program = "\n".join(text for text in texts if HAS_PEFT or "from peft" not in text)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "torch.Size([2, 4, 32]) 32"
    if HAS_PEFT:
        assert lines[1].startswith("trainable params: ")
        assert lines[2] == "torch.Size([2, 4, 32])"
