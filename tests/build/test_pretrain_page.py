"""The commands of docs/pretrain.md run as they are printed, and print what has its form."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from tests.build.markdown import ROOT, blocks_of
from tests.helpers import small_sample, tiny_backbone

BLOCKS = blocks_of(ROOT / "docs" / "pretrain.md")
SHELL = [block.commands for block in BLOCKS if block.language == "sh"]
SHORT = ("--rounds", "2", "--round.batch-size", "4", "--log.no-tensorboard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page's commands find: task files, text files, and an encoder of that name."""
    folder = tmp_path_factory.mktemp("pretrain_page")
    small_sample(folder / "DIR")
    tiny_backbone(folder / "bert-base-uncased")
    for name in ("news.txt", "reviews.txt"):
        lines = [f"{name} {i} is slow and empty\na joy to see again\n" for i in range(60)]
        (folder / name).write_text("\n".join(lines))
    (text,) = [block.text for block in BLOCKS if block.language == "yaml"]
    (folder / "pairs.yaml").write_text(text.replace("minilm", "bert-base-uncased"))
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(command: str, *flags: str) -> None:
    program, *words = shlex.split(command)
    assert program == "sbrrt-fast" and main([*words, *flags]) == 0


def test_the_checkpoint_is_fine_tuned():
    pretrain, train = SHELL[0]
    run(pretrain)
    run(train, *SHORT)
    assert Path("runs/x/metrics.json").exists()


def test_text_files_are_trained_on():
    (command,) = SHELL[1]
    run(command)
    assert Path("runs/domain/last/model.safetensors").exists()


def test_the_settings_print_what_is_printed(capsys):
    run("sbrrt-fast pretrain --config pairs.yaml --output runs/pairs")
    printed = without_numbers(capsys.readouterr().out).splitlines()
    (text,) = [block.text for block in BLOCKS if block.language == "text"]
    for line in without_numbers(text).splitlines():
        assert line in printed


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,]*(\.\d+)?", "#", text)
