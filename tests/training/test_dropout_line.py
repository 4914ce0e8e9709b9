"""The line on pairs whose |u - v| dropout makes larger in training than on dev."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sbrrt_fast.config import ModelConfig, RunConfig
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.training.build import build_model
from tests.helpers import tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return str(tiny_backbone(tmp_path_factory.mktemp("dropout") / "backbone"))


def lines_of(backbone: str, tasks=BUILTIN_TASKS, hidden=0.1, attention=0.1, **model) -> list[str]:
    rates = {"hidden_dropout": hidden, "attention_dropout": attention}
    config = RunConfig(tasks=tasks, model=ModelConfig(backbone=backbone, **rates, **model))
    lines: list[str] = []
    build_model(config, lines.append)
    return [line for line in lines if "|u - v|" in line]


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.0), (0.0, 0.1), (None, None)])
def test_a_run_with_dropout_says_it(backbone, rates):
    """The checkpoint's own rates, where none is set, are 0.1."""
    assert lines_of(backbone, hidden=rates[0], attention=rates[1]) == [
        "para: dropout makes |u - v| larger in training than on dev; --tasks.para.no-dropout may "
        "score better (docs/multitask.md)"
    ]


def test_two_such_tasks_are_named(backbone):
    para = BUILTIN_TASKS["para"]
    [line] = lines_of(backbone, {"first": para, "second": para})
    assert line.startswith("first, second: dropout")
    assert "--tasks.first.no-dropout --tasks.second.no-dropout may" in line


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden": 0.0, "attention": 0.0},
        {"pair_features": "concat"},
        {"tasks": {"para": replace(BUILTIN_TASKS["para"], encoding="cross")}},
        {"tasks": {name: BUILTIN_TASKS[name] for name in ("sst", "sts")}},
        {"tasks": {**BUILTIN_TASKS, "para": replace(BUILTIN_TASKS["para"], dropout=False)}},
        {"tasks": {**BUILTIN_TASKS, "para": replace(BUILTIN_TASKS["para"], train=False)}},
    ],
)
def test_others_have_no_such_line(backbone, fields):
    assert lines_of(backbone, **fields) == []
