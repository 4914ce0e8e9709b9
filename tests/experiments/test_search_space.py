"""The space of a search: what its file says, its grid, and a line for every mistake in it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.commands import search
from sbrrt_fast.config import RunConfig
from sbrrt_fast.experiments.search.space import Choice, Range
from sbrrt_fast.experiments.search.space_file import SpaceError, read_space

BASE = RunConfig()


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str, is_grid: bool = False) -> list[str]:
    """Without the folder of the file."""
    with pytest.raises(SpaceError) as caught:
        read_space(write(folder, text), BASE, is_grid)
    return [line.removeprefix(f"{folder}/") for line in caught.value.mistakes]


def test_settings_are_read_as_they_are_written(tmp_path):
    text = """
optimizer.learning_rate: {low: 1e-5, high: 5e-4, log: true}
smart.weight: {low: 0, high: 4}
round.batch_size: {low: 8, high: 32, step: 8}
rounds: {low: 10, high: 12}
smart.step_size: {values: [0.01, .inf]}
tasks.para.encoding:
  values: [siamese, cross]
optimizer.betas: {values: [[0.9, 0.999], [0.9, 0.98]]}
backbone: {values: [minilm]}
"""
    assert read_space(write(tmp_path, text), BASE).settings == (
        Range("optimizer.learning_rate", 1e-5, 5e-4, is_whole=False, log=True),
        Range("smart.weight", 0.0, 4.0, is_whole=False),
        Range("round.batch_size", 8, 32, is_whole=True, step=8),
        Range("rounds", 10, 12, is_whole=True),
        Choice("smart.step_size", (0.01, math.inf)),
        Choice("tasks.para.encoding", ("siamese", "cross")),
        Choice("optimizer.betas", ([0.9, 0.999], [0.9, 0.98])),
        Choice("model.backbone", ("minilm",)),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("smart.radios: {values: [1]}", "unknown setting 'smart.radios'; did you mean"),
        ("tasks.cfimdb.weight: {values: [1]}", "unknown setting 'tasks.cfimdb.weight'"),
        ("smart: {values: [1]}", "'smart' is a section; name one of its settings"),
        ("seed: {values: [1, 2]}", "seed: is set for each run by this command"),
        ("output: {values: [a]}", "output: is of one call of a command"),
        ("log.dev_rows: {values: [1]}", "log.dev_rows: decides what dev scores are made of"),
        ("tasks.sst.metric: {values: [f1]}", "tasks.sst.metric: decides what dev scores are"),
        ("smart.radius: [1, 2]", "smart.radius: got [1, 2]; write {values: [...]} or {low"),
        ("smart.radius: {vals: [1]}", "unknown key 'vals'; did you mean 'values'?"),
        ("smart.radius: {values: [1], low: 0}", "has values and a range; give one of them"),
        ("smart.radius: {values: []}", "values must be a list of one or more, got []"),
        ("smart.radius: {values: 1}", "values must be a list of one or more, got 1"),
        ("smart.radius: {values: [1, 1.0]}", "the value 1.0 is given twice; remove one"),
        ("smart.radius: {low: 1}", "'high' is missing; give low and high, or values"),
        ("smart.radius: {low: 1, high: 1}", "low must be below high, got 1.0 and 1.0"),
        ("smart.radius: {low: 1, high: .inf}", "high must be a finite number, got inf"),
        ("smart.radius: {low: true, high: 2}", "low must be a finite number, got True"),
        ("smart.weight: {low: 0, high: 1, log: true}", "log needs a low above 0, got 0.0"),
        ("smart.radius: {low: 1, high: 2, log: 1}", "log must be true or false, got 1"),
        ("smart.radius: {low: 1, high: 2, step: 1, log: true}", "log and step do not go together"),
        ("smart.radius: {low: 1, high: 2, step: 0}", "step must be above 0, got 0.0"),
        ("round.batch_size: {low: 8, high: 31, step: 8}", "do not end at high 31; make it 24"),
        ("round.batch_size: {low: 0.5, high: 4}", "low must be a whole number, got 0.5"),
        ("precision: {low: 1, high: 2}", "precision: is no number, so it has no range"),
        ("optimizer.betas: {low: 0, high: 1}", "optimizer.betas: is no number"),
        ("smart.radius: {values: [0.1, -1]}", "smart.radius: must be above 0, got -1.0"),
        ("optimizer.warmup: {low: 0.1, high: 2}", "optimizer.warmup: must be from 0 to 1, got 2"),
        ("smart.radius: {values: [wide]}", "smart.radius: must be a valid number"),
        ("tasks.sts.encoding: {values: [siamese, cross]}", "head 'cosine' compares two sentences"),
    ],
)
def test_a_mistake_has_its_file_and_line(tmp_path, line, message):
    (found,) = mistakes(tmp_path, f"# a comment\n{line}\n")
    assert found.startswith("space.yaml:2: ") and message in found


def test_every_mistake_is_told(tmp_path):
    text = "smart.radius: {values: [-1]}\nsmart.weight:\n  values: [1]\nsmart.norn: {values: [1]}\n"
    found = mistakes(tmp_path, text)
    assert [line.split(": ")[0] for line in found] == ["space.yaml:1", "space.yaml:4"]


def test_values_that_no_run_can_have_together_are_told(tmp_path):
    head = "tasks.para.head: {values: [binary, cosine]}\n"
    (found,) = mistakes(tmp_path, head + "tasks.para.encoding: {values: [siamese, cross]}\n")
    assert found.startswith("space.yaml:2: tasks.para.head 'cosine' with tasks.para.encoding 'cros")


def test_a_setting_has_one_name(tmp_path):
    text = "backbone: {values: [minilm]}\nmodel.backbone: {values: [minilm]}\n"
    assert "are the same setting; remove one" in mistakes(tmp_path, text)[0]


@pytest.mark.parametrize("text", ["", "- 1\n", "{}\n"])
def test_a_space_has_settings(tmp_path, text):
    assert "expected settings and their values" in mistakes(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smart.radius: {low: 0.1, high: 1}\n", "space.yaml:1: smart.radius: a grid needs values"),
        ("rounds: {low: 1, high: 8, log: true}\n", "space.yaml:1: rounds: a grid needs values"),
        (
            "rounds: {low: 1, high: 9007199254740993}\n",
            "space.yaml: the grid has 9,007,199,254,740,993 combinations, more than 1,000",
        ),
    ],
)
def test_a_grid_can_be_counted(tmp_path, text, message):
    assert mistakes(tmp_path, text, is_grid=True)[0].startswith(message)


def test_a_grid_has_every_combination_once(tmp_path):
    text = """
smart.radius: {low: 0.1, high: 0.3, step: 0.1}
round.batch_size: {low: 4, high: 6}
optimizer.betas: {values: [[0.9, 0.999], [0.9, 0.98]]}
"""
    space = read_space(write(tmp_path, text), BASE, is_grid=True)
    settings = [space.values(params) for params in space.grid()]
    assert len(settings) == space.grid_size() == 18
    assert settings[1] == {
        "smart.radius": 0.1,
        "round.batch_size": 4,
        "optimizer.betas": [0.9, 0.98],
    }
    assert {s["smart.radius"] for s in settings} == {0.1, 0.2, 0.3}  # not 0.30000000000000004
    assert len({str(s) for s in settings}) == 18


def test_without_optuna_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    assert main(["search", "--space", str(tmp_path / "space.yaml")]) == 2
    assert capsys.readouterr().err == (
        "sbrrt-fast search: needs the library optuna; run `pip install 'sbrrt_fast[search]'`\n"
    )
