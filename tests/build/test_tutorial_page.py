"""docs/tutorial.md goes from its file to a report and predictions as it is printed.

The encoder is the tests' tiny one, so the numbers differ; everything else is compared.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.markdown import blocks_of
from tests.build.tutorial import MESSAGES, PAGE, texts, write_files
from tests.helpers import tiny_backbone

BLOCKS = blocks_of(PAGE)
TEAMS = {"billing", "delivery", "returns"}


def run(folder: Path, *command: str) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the reader has: the file, the recipe as printed, three new messages."""
    folder = tmp_path_factory.mktemp("tutorial")
    tiny_backbone(folder / "tiny")
    write_files(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def printed(folder) -> list[str]:
    """What each of the three commands prints."""
    program = str(Path(sys.executable).with_name("sbrrt-fast"))
    (block,) = [block for block in BLOCKS if block.language == "sh"]
    assert len(block.commands) == 3
    return [run(folder, program, *command.split()[1:]) for command in block.commands]


def without_numbers(text: str) -> str:
    text = re.sub(r"-?\d+\.\d+(e-\d+)?|\b\d+\b", "#", text)
    return re.sub(r" +", " ", re.sub("|".join(TEAMS), "TEAM", text))


def test_training_ends_as_told(printed):
    scores, _ = texts("text")
    assert without_numbers(scores) in without_numbers(printed[0])
    assert "3 classes, 'billing', 'delivery', 'returns'" in printed[0]


def test_the_report_has_its_pictures(folder, printed):
    page = (folder / "runs" / "messages" / "report.html").read_text(encoding="utf-8")
    assert "report.html" in printed[1]
    assert page.count("<svg") > 5 and all(team in page for team in TEAMS)


def test_predictions_have_the_form_that_is_printed(printed):
    _, predictions = texts("text")
    assert without_numbers(printed[2]) == without_numbers(predictions)
    for line in printed[2].splitlines():
        label, *probabilities = line.split("\t")
        values = list(map(float, probabilities))
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert sorted(TEAMS)[values.index(max(values))] == label


def test_the_program_does_the_same(folder):
    (program,) = texts("python")
    assert len([line for line in program.splitlines() if line.strip()]) == 10
    output = run(folder, sys.executable, "-c", program.replace("minilm", "tiny"))
    assert re.search(rf"^({'|'.join(TEAMS)}) 0\.\d+$", output, re.MULTILINE)


def test_the_rows_that_are_shown_are_those_of_the_file():
    with MESSAGES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert MESSAGES.read_text(encoding="utf-8").startswith(texts("csv")[0])
    assert len(rows) == 150 and {row["team"] for row in rows} == TEAMS
