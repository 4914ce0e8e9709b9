"""The commands of docs/predict.md run as they are printed, and print what has its form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.markdown import ROOT, blocks_of
from tests.helpers import train_tiny

BLOCKS = blocks_of(ROOT / "docs" / "predict.md")
SHELL = [block for block in BLOCKS if block.language == "sh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page's commands find: a run, and two reviews in three formats."""
    folder = tmp_path_factory.mktemp("predict_page")
    (folder / "tasks.yaml").write_text("tasks: [sst, cfimdb]\n")
    flags = ["--config", str(folder / "tasks.yaml"), "--output", str(folder / "runs" / "x")]
    train_tiny(folder, *flags)
    (folder / "reviews.txt").write_text("a joy\nslow and empty\n")
    (folder / "reviews.csv").write_text("id,sentence\na7,a joy\nb2,slow and empty\n")
    rows = '{"id": "a7", "sentence": "a joy"}\n{"id": "b2", "sentence": "slow and empty"}\n'
    (folder / "reviews.jsonl").write_text(rows)
    return folder


def shell(text: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", text]
    environment = {**os.environ, "PATH": path}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_texts_go_to_a_file_or_are_printed(folder):
    assert re.fullmatch(r"[0-4]\n[0-4]\n", shell(SHELL[0].text, folder))
    assert len((folder / "sst.txt").read_text().splitlines()[0].split("\t")) == 6


def test_each_format_looks_as_is_printed(folder):
    (text,) = [block.text for block in BLOCKS if block.language == "text"]
    assert without_numbers(shell(SHELL[1].text, folder)) == without_numbers(text)


def without_numbers(text: str) -> str:
    """Without labels and probabilities; ids, names and separators stay."""
    return re.sub(r'(?<![\w"])\d(\.\d+)?(e-\d+)?(?!["\w])', "#", text)
