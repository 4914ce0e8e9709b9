"""Tasks may have any name that people give them; the few that cannot be are refused in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sbrrt_fast.cli import main
from sbrrt_fast.config_cli import parse_cli
from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import config_from_dict, load_config
from sbrrt_fast.config_rules import validate
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.modes import without_dropout
from sbrrt_fast.model.multitask import MultiTaskModel
from tests.helpers import small_sample, tiny_backbone
from tests.model.models import CONFIG, MiniBert

ATTRIBUTES = sorted(name for name in dir(nn.ModuleDict()) if name.isidentifier())
NAMES = ["type", "keys", "forward", "_x", "__class__", "training", "20news", "A", "a", "no", "x-y"]


def record(name: str) -> dict:
    return {
        "files": {split: f"ids-sst-{split}.csv" for split in ("train", "dev")},
        "text_columns": ["sentence"],
        "label_column": "sentiment",
        "head": "classes",
        "num_classes": 5,
        "prediction_file": f"{name.swapcase() if name == 'A' else name}-{{split}}.csv",
    }


def test_no_attribute_of_a_module_is_in_the_way():
    assert {"type", "update", "_modules", "__init__"} <= set(ATTRIBUTES)
    tasks = dict.fromkeys(ATTRIBUTES, BUILTIN_TASKS["sst"])
    model = MultiTaskModel(MiniBert(CONFIG, "mean"), tasks)
    keys = [f"{name}.classifier.{part}" for name in ATTRIBUTES for part in ("weight", "bias")]
    assert list(model.heads.state_dict()) == keys
    named = {name for name, _ in model.named_parameters()}
    assert {f"heads.{key}" for key in keys} <= named
    assert [name for name, _ in model.heads.items()] == ATTRIBUTES

    other = copy.deepcopy(model)
    for p in other.parameters():
        nn.init.zeros_(p)
    other.load_state_dict(model.state_dict())
    pooled = torch.randn(3, CONFIG.hidden_size)
    for name in ATTRIBUTES:
        assert torch.equal(other.head_outputs(name, pooled, None), model.heads[name](pooled))
    for mode in (False, True):
        assert {m.training for m in other.train(mode).modules()} == {mode}
        with without_dropout(other):
            assert not any(m.training for m in other.modules())
        assert {m.training for m in other.modules()} == {mode}
    assert list(other.heads.state_dict()) == keys
    assert other.heads["type"].classifier.weight.dtype == torch.float32
    assert other.to(torch.float64).heads["type"].classifier.weight.dtype == torch.float64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    small_sample(folder / "data", num_rows=12)
    tiny_backbone(folder / "backbone")
    return folder


def test_such_tasks_train_resume_score_and_predict(folder, monkeypatch):
    tasks = {name: record(name) for name in NAMES}
    tasks["A"]["prediction_file"] = "upper-{split}.csv"
    (folder / "tasks.yaml").write_text(json.dumps({"tasks": tasks}))  # JSON is YAML
    flags = ["train", "--config", str(folder / "tasks.yaml"), "--data-dir", str(folder / "data")]
    flags += ["--backbone", str(folder / "backbone"), "--output", str(folder / "run")]
    flags += ["--round.batch-size", "2", "--smart.weight", "1", "--bregman.weight", "1"]
    flags += ["--log.every", "1", "--log.state-every", "1", "--rounds", "2"]
    assert main([*flags, "--tasks._x.weight", "2", "--tasks.type.weight", "0.5"]) == 0

    heads = load_file(folder / "run" / "best" / "heads.safetensors")
    assert {key.split(".")[0] for key in heads} == set(NAMES)
    assert heads["type.classifier.weight"].shape == (5, 32)
    dev = json.loads((folder / "run" / "metrics.json").read_text())["dev"]
    assert list(dev) == [*NAMES, "overall"]
    assert dev["overall"] == pytest.approx(
        sum(dev[name]["accuracy"] for name in NAMES) / len(NAMES)
    )
    first = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {key.split("/")[0] for key in first if key.endswith("/smart")} == set(NAMES)
    weights = {
        name: t.weight for name, t in load_config(folder / "run" / "config.yaml").tasks.items()
    }
    assert weights == dict.fromkeys(NAMES, 1.0) | {"_x": 2.0, "type": 0.5}

    scores = folder / "scores.json"
    assert main(["evaluate", str(folder / "run"), "--output", str(scores)]) == 0
    assert json.loads(scores.read_text())["dev"] == dev
    assert main(["predict", str(folder / "run"), "--split", "dev"]) == 0
    assert len(list((folder / "run" / "predictions").iterdir())) == len(NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sst", "overall"], "a task cannot be called 'overall', where the mean score stands"),
        (["a.b"], "'a.b' is no task name; use letters, digits, '_' and '-', at most 64"),
        (["-a"], "'-a' is no task name"),
        ([""], "'' is no task name"),
        (["a b"], "'a b' is no task name"),
        (["a/b"], "'a/b' is no task name"),
        (["é"], "'é' is no task name"),
        (["a\n"], "'a\\n' is no task name"),
        (["\x1b"], "'\\x1b' is no task name"),
        (["x" * 65], "is no task name"),
        (["a_b", "c", "a-b"], "'a_b' and 'a-b' differ in '-' and '_' alone"),
    ],
)
def test_names_that_cannot_be(names, message):
    with pytest.raises(ConfigError) as caught:
        validate(config_from_dict({"tasks": {name: record("mine") for name in names}}, "mine"))
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_flags_reach_the_task_that_they_name():
    """Why names that differ in - and _ alone are refused: flags do not tell them apart."""
    base = config_from_dict({"tasks": {name: record(name) for name in ("A", "a", "a-b", "_x")}})
    config = parse_cli(["--tasks.a.weight", "3", "--tasks.a-b.weight", "4"], base)
    weights = {name: task.weight for name, task in config.tasks.items()}
    assert weights == {"A": 1.0, "a": 3.0, "a-b": 4.0, "_x": 1.0}
    assert config_from_dict(config_to_dict(config)) == config
