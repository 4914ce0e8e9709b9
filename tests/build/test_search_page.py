"""The commands of docs/search.md run as they are printed, on small data and for few rounds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sbrrt_fast.commands.search import SearchOptions
from sbrrt_fast.config import RunConfig
from sbrrt_fast.experiments.search.space_file import read_space
from tests.build.markdown import ROOT, blocks_of
from tests.helpers import small_sample, tiny_backbone

PAGE = ROOT / "docs" / "search.md"
PROGRAM = Path(sys.executable).with_name("sbrrt-fast")
FEW = "--rounds 2 --log.evaluate-every 1 --log.no-tensorboard --precision fp32"
optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")


def texts(language: str) -> list[str]:
    return [block.text for block in blocks_of(PAGE) if block.language == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page's reader has, and a shell's sbrrt-fast that trains briefly."""
    folder = tmp_path_factory.mktemp("search_page")
    small_sample(folder / "DIR", 32)  # as many as the largest batch
    backbone = tiny_backbone(folder / "tiny", num_layers=1)
    (space,) = texts("yaml")
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    script = folder / "bin" / "sbrrt-fast"
    script.parent.mkdir()
    trials = "--trials 3 --backbone"
    script.write_text(
        f'#!/bin/sh\ncase $1 in search) set -- "$@" {FEW} {trials} {backbone};; esac\n'
        f"exec '{PROGRAM}' \"$@\"\n"
    )
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def printed(folder) -> list[str]:
    """What each block of shell prints."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    outputs = []
    for text in texts("sh"):
        command = ["bash", "-euc", text]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    return outputs


def test_the_space_can_be_searched(folder):
    assert len(read_space(folder / "space.yaml", RunConfig()).settings) == 4


def without_values(text: str) -> str:
    """Without scores, settings and counts of trials."""
    text = re.sub(r"\d+ trials \([^)]*\)", "N trials", text)
    return re.sub(r"siamese|cross|\d+(\.\d+)?(e-\d+)?", "#", text)


def test_the_end_of_a_search_is_as_printed(printed):
    (text,) = texts("text")
    assert without_values(printed[0]).endswith(without_values(text))


def test_the_best_recipe_is_trained(folder, printed):
    found = json.loads((folder / "runs" / "search" / "trials.json").read_text())
    metrics = json.loads((folder / "runs" / "best" / "metrics.json").read_text())
    assert metrics["dev"]["overall"] == found["best_value"]
    assert "runs/best" in printed[1]


def test_two_at_once_share_the_trials_out(folder, printed):
    found = json.loads((folder / "runs" / "shared" / "trials.json").read_text())
    assert len(found["trials"]) == 3
    assert sorted(re.findall(r"trial (\d) of 3 starts", printed[2])) == ["1", "2", "3"]


def test_the_folder_has_what_the_page_lists(folder, printed):
    names = re.findall(r"`([a-z]+\.(?:yaml|json|csv|png|db))`", PAGE.read_text(encoding="utf-8"))
    present = {path.name for path in (folder / "runs" / "search").rglob("*")}
    assert set(names) - {"space.yaml"} <= present and len(set(names)) >= 7


def test_every_flag_of_its_own_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    flags = [f"--{name.replace('_', '-')}" for name in SearchOptions.__dataclass_fields__]
    assert [flag for flag in flags if flag not in text] == []
