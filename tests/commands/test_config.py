"""YAML files: the configurations they make, and how each mistake is named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from sbrrt_fast.config import OptimizerConfig, RunConfig, SmartConfig
from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import config_from_dict, load_config, save_config
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError
from tests.helpers import config_file

OWN_TASK = """
tasks:
  sst: {}
  nli:
    files: {train: nli.tsv, dev: nli-dev.tsv}
    text_columns: [premise, hypothesis]
    label_column: label
    encoding: cross
    head: classes
    num_classes: 3
"""


def loaded(folder, text):
    return load_config(config_file(folder, text))


def test_defaults_come_from_the_dataclasses(tmp_path):
    assert load_config(None) == RunConfig()
    assert loaded(tmp_path, "# nothing\n") == RunConfig()
    assert loaded(tmp_path, "smart:\n  # weight: 1\n") == RunConfig()


def test_values_are_read_into_their_types(tmp_path):
    config = loaded(
        tmp_path,
        """
        data_dir: some/where
        optimizer: {learning_rate: 3e-5, betas: [0.8, 0.9], weight_decay: 0}
        smart: {step_size: .inf, norm: 2, radius: 1E-2, normalize_gradient: true}
        bregman: {schedule: paper}
        """,
    )
    assert config.data_dir == Path("some/where")
    assert config.optimizer == OptimizerConfig(learning_rate=3e-5, betas=(0.8, 0.9), weight_decay=0)
    assert config.smart == SmartConfig(
        step_size=math.inf, norm="2", radius=0.01, normalize_gradient=True
    )
    assert config.bregman.schedule == "paper"
    assert loaded(tmp_path, "smart: {norm: .inf}").smart.norm == "inf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smart: {radus: 1}", "unknown key 'smart.radus'; did you mean 'radius'?"),
        ("epohcs: 1", "unknown key 'epohcs'; did you mean 'epochs'?"),
        ("learning_rate: 1", "'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("zzz: 1", "unknown key 'zzz'"),
        ("tasks: {sst: {wieght: 2}}", "unknown key 'tasks.sst.wieght'; did you mean 'weight'?"),
        ("smart: {weight: heavy}", "smart.weight: must be a valid number, got 'heavy'"),
        ("rounds: 1.5", "rounds: must be a valid integer, got 1.5"),
        ("rounds: '10'", "rounds: must be a valid integer, got '10'"),
        ("resume: 1", "resume: must be a valid boolean, got 1"),
        ("data_dir: 3", "data_dir: must be a valid string, got 3"),
        ("smart: {norm: 3}", "smart.norm: must be 'inf' or '2', got 3"),
        ("mode: fine", "mode: must be 'finetune' or 'pretrain', got 'fine'"),
        ("smart: 3", "smart: must be an object, got 3"),
        ("optimizer: {betas: [0.9, x]}", "optimizer.betas.1: must be a valid number, got 'x'"),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}", "optimizer.betas: "),
        ("tasks: {sst: {num_classes: 1}}", "tasks.sst.num_classes: head 'classes' got 1"),
        ("tasks: {sst: {weight: x}}", "tasks.sst.weight: must be a valid number, got 'x'"),
        ("tasks: [sst, parra]", "'parra' is not a built-in task; did you mean 'para'?"),
        ("tasks: [sst, sst]", "tasks: a name is given twice"),
        ("tasks: sst", "tasks: must be a list of names or a mapping, got 'sst'"),
        ("tasks: {nli: {files: {}}}", "'tasks.nli.text_columns' is missing; add it"),
        ("tasks: {a.b: {weight: 1}}", "'a.b' is no task name"),
        ("tasks: {sst: {files: {trian: x}}}", "tasks.sst.files: must be files of"),
        ("tasks: []", "tasks: must be at least one task"),
        ("round: {epoch_task: cfimdb}", "round.epoch_task: must be in ['sst', 'para', 'sts']"),
        ("- 1", "expected keys and values, got [1]"),
    ],
)
def test_each_mistake_in_a_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "x.yaml:2: key 'seed' is given twice"),
        ("seed: 1\n2: 3\n", "x.yaml:2: key '2' is not a name"),
        ("seed: 1\nsmart: {\n", "x.yaml:3: "),
        (
            "seed: !!python/name:os.system\n",
            "x.yaml:1: the tag '!!python/name:os.system' is not allowed",
        ),
    ],
)
def test_mistakes_in_the_yaml_itself_have_a_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert message in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"recipe: \xff")
    with pytest.raises(ConfigError, match=r"x.yaml:1: not UTF-8"):
        load_config(tmp_path / "x.yaml")


def test_tasks_can_be_names(tmp_path):
    tasks = loaded(tmp_path, "tasks: [sts, cfimdb]").tasks
    assert list(tasks.items()) == [(name, BUILTIN_TASKS[name]) for name in ("sts", "cfimdb")]


def test_given_fields_override_a_builtin_record(tmp_path):
    text = "tasks: {sts: {weight: 2, label_range: [0, 1], files: {dev: d.csv}}, para: }"
    tasks = loaded(tmp_path, text).tasks
    builtin = BUILTIN_TASKS["sts"]
    files = {**builtin.files, "dev": "d.csv"}
    assert tasks["sts"] == dataclasses.replace(
        builtin, weight=2.0, label_range=(0.0, 1.0), files=files
    )
    assert tasks["para"] == BUILTIN_TASKS["para"]
    assert builtin.files["dev"] == "sts-dev.csv"


def test_a_new_task_needs_no_code(tmp_path):
    tasks = loaded(tmp_path, OWN_TASK).tasks
    assert list(tasks) == ["sst", "nli"]
    assert tasks["nli"].text_columns == ("premise", "hypothesis")
    assert (tasks["nli"].loss_name, tasks["nli"].metric_name) == ("cross_entropy", "accuracy")


def test_overrides_are_checked_like_the_file(tmp_path):
    path = config_file(tmp_path, "seed: 4\nsmart: {weight: 1}\n")
    config = load_config(path, {"smart.weight": 5, "tasks.sst.weight": 2.0, "rounds": None})
    assert (config.seed, config.smart.weight, config.tasks["sst"].weight) == (4, 5.0, 2.0)
    assert list(config.tasks) == ["sst", "para", "sts"]
    with pytest.raises(ConfigError, match=r"unknown key 'smart.wieght'; did you mean 'weight'"):
        load_config(path, {"smart.wieght": 5})
    with pytest.raises(ConfigError, match="unknown key 'smrt'"):
        load_config(path, {"smrt.weight": 5})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"data_dir": Path("a b/c"), "rounds": 7, "recipe": "3e5", "seed": 2**62},
        {"smart": SmartConfig(step_size=math.inf, sigma=1e-5, norm="inf", projection="ball")},
        {"optimizer": OptimizerConfig(learning_rate=0.1 + 0.2, betas=(0.1, 0.3))},
        {"tasks": {"sts": BUILTIN_TASKS["sts"], "cfimdb": BUILTIN_TASKS["cfimdb"]}},
    ],
)
def test_a_saved_configuration_loads_equal(tmp_path, change):
    config = dataclasses.replace(RunConfig(), **change)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_new_task_survives_saving(tmp_path):
    config = loaded(tmp_path, OWN_TASK)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "backbone"),
    [
        ("backbone: a", "a"),
        ("model: {backbone: a, max_length: 9}", "a"),
        ("backbone: a\nmodel: {backbone: b, max_length: 9}", "a"),
        ("backbone: a\nmodel:\n", "a"),
        ("backbone:\nmodel: {backbone: b}", "b"),  # as older runs have it
        ("seed: 3", "minilm"),
    ],
)
def test_backbone_is_short_for_the_models(tmp_path, text, backbone):
    config = loaded(tmp_path, text)
    assert config.model.backbone == backbone
    assert config.model.max_length == (9 if "9" in text else 512)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: 5", "model.backbone: must be a valid string, got 5; put it in quotes"),
        ("backbone: a\nmodel: 5", "model: must be an object, got 5"),
    ],
)
def test_a_backbone_that_is_none_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, text)


def test_dicts_are_checked_with_the_name_of_their_source():
    assert config_from_dict({"seed": 5}) == dataclasses.replace(RunConfig(), seed=5)
    with pytest.raises(ConfigError, match=r"^table 1: unknown key 'sed'; did you mean 'seed'\?"):
        config_from_dict({"sed": 5}, "table 1")


# From Python


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"epochs": "3"}, "epochs: must be a valid integer, got '3'; write digits alone"),
        ({"precision": "fp16"}, "precision: must be 'fp32' or 'bf16', got 'fp16'"),
        ({"smart": SmartConfig(weight=-1)}, "smart.weight: must be at least 0, got -1"),
        ({"smart": SmartConfig(weight="x")}, "smart.weight: must be a valid number, got 'x'"),
        ({"smart": OptimizerConfig()}, 'smart: must be an object, got "OptimizerConfig('),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.0))}, "optimizer.betas: must be at least 0"),
        ({"model": {"backbon": "x"}}, "unknown key 'model.backbon'; did you mean 'backbone'?"),
        ({"tasks": {}}, "tasks: must be at least one task"),
        ({"tasks": ["sst", "parra"]}, "'parra' is not a built-in task; did you mean 'para'?"),
        ({"tasks": {"a.b": BUILTIN_TASKS["sst"]}}, "tasks: 'a.b' is no task name"),
        (
            {"tasks": {"x": dataclasses.replace(BUILTIN_TASKS["sst"], weight=-1.0)}},
            "tasks.x.weight: must be at least 0",
        ),
        ({"round": None, "recipe": "a\nb"}, "recipe: must have no control characters"),
    ],
)
def test_a_configuration_made_in_python_checks_itself(fields, message):
    with pytest.raises(ConfigError) as caught:
        RunConfig(**fields)
    assert message in str(caught.value)
    with pytest.raises(ConfigError):
        dataclasses.replace(RunConfig(), **fields)


def test_python_s_texts_and_lists_become_paths_and_tuples():
    config = RunConfig(
        data_dir="some/where",
        output="runs/x",
        report_to=["wandb"],
        optimizer=OptimizerConfig(betas=[0.8, 0.9]),
        smart=SmartConfig(norm=2),
        tasks={"sst": dataclasses.replace(BUILTIN_TASKS["sst"], text_columns=["sentence"])},
    )
    assert (config.data_dir, config.output) == (Path("some/where"), Path("runs/x"))
    assert config.optimizer == OptimizerConfig(betas=(0.8, 0.9))
    assert config.report_to == ("wandb",) and config.smart.norm == "2"
    assert config.tasks == {"sst": BUILTIN_TASKS["sst"]}
    assert config == config_from_dict({**config_to_dict(config)})


def test_a_record_from_python_is_taken_as_it_is():
    """Its files are not completed by those of the built-in task of that name."""
    task = dataclasses.replace(BUILTIN_TASKS["sst"], files={"train": "a.tsv", "dev": "b.tsv"})
    assert RunConfig(tasks={"sst": task}).tasks == {"sst": task}
