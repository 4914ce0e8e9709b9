"""docs/python.md runs as it is printed and prints what it says; public names are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import sbrrt_fast
from tests.build.markdown import ROOT, blocks_of
from tests.helpers import tiny_backbone

TICKETS = [
    f'"{text}, case {number}",{topic}\n'
    for number in range(20)
    for topic, text in {
        "billing": "my card was charged twice",
        "delivery": "the parcel never came",
        "other": "how do I change my name",
    }.items()
]
BLOCKS = blocks_of(ROOT / "docs" / "python.md")


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> list[str]:
    """What each Python block prints, in a folder with a small encoder of the name in the text."""
    folder = tmp_path_factory.mktemp("python_page")
    tiny_backbone(folder / "bert-base-uncased")
    (folder / "reviews.txt").write_text("a joy\nslow\nwarm and funny\n", encoding="utf-8")
    (folder / "tickets.csv").write_text("text,topic\n" + "".join(TICKETS), encoding="utf-8")
    blocks = [block.text for block in BLOCKS if block.language == "python"]
    program = "\nprint('-----')\n".join(blocks)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len((folder / "labels.txt").read_text().splitlines()) == 3
    return result.stdout.split("-----\n")


def block_with(words: str) -> int:
    python = [block.text for block in BLOCKS if block.language == "python"]
    (number,) = [i for i, text in enumerate(python) if words in text]
    return number


def test_the_program_prints_what_is_told(printed):
    assert re.search(r"^overall 0\.\d+$", printed[block_with("result = train")], re.M)
    assert re.search(r"^cosine -?0\.\d+$", printed[block_with("normalize=True")], re.M)
    curve = printed[block_with("class Curve")]
    assert re.search(r"^round 20 overall 0\.\d+$", curve, re.M) and "4 points\n" in curve


def test_a_file_of_one_s_own_is_learnt_with_its_names(printed):
    classes, labels = printed[block_with("tickets.csv")].splitlines()[-2:]
    assert classes == "('billing', 'delivery', 'other')"
    assert labels == "['billing']"  # three kinds of sentences, so a tiny encoder tells them apart


def test_the_output_has_the_shape_of_the_one_that_is_printed(printed):
    (text,) = [block.text for block in BLOCKS if block.language == "text"]
    ours = printed[block_with("for label, probabilities in reviews")]
    assert without_numbers(ours) == without_numbers(text)


def without_numbers(text: str) -> str:
    return re.sub(r"^\d \d\.\d+$", "#", text, flags=re.MULTILINE)


def test_every_public_name_is_there():
    for name in sbrrt_fast.__all__:
        assert getattr(sbrrt_fast, name) is not None
    assert set(sbrrt_fast.__all__) < set(dir(sbrrt_fast))
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = sbrrt_fast.lod


def test_the_import_loads_nothing_heavy():
    program = "import sys, sbrrt_fast; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_the_package_is_marked_as_typed():
    assert (ROOT / "sbrrt_fast" / "py.typed").is_file()
