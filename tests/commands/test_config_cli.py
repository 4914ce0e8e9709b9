"""Flags: the configurations they make, and how each mistake is named."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.config_cli import parse_cli, parse_run_config
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_help import groups
from sbrrt_fast.config_io import load_config
from sbrrt_fast.recipe_files import recipe_path
from tests.helpers import config_file


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--rounds 10", "rounds", 10),
        ("--rounds None", "rounds", None),
        ("--rounds=3", "rounds", 3),
        ("--epochs 2", "epochs", 2),
        ("--data-dir DIR", "data_dir", Path("DIR")),
        ("--resume", "resume", True),
        ("--precision bf16", "precision", "bf16"),
        ("--backbone some/dir", "model.backbone", "some/dir"),
        ("--smart.weight 1", "smart.weight", 1.0),
        ("--smart.step-size inf", "smart.step_size", math.inf),
        ("--smart.step_size 0.5", "smart.step_size", 0.5),
        ("--smart.radius None", "smart.radius", None),
        ("--smart.norm 2", "smart.norm", "2"),
        ("--smart.normalize-gradient False", "smart.normalize_gradient", False),
        ("--optimizer.learning-rate 3e-5", "optimizer.learning_rate", 3e-5),
        ("--optimizer.betas 0.8 0.9", "optimizer.betas", (0.8, 0.9)),
        ("--tasks.sst.weight 2", "tasks.sst.weight", 2.0),
        ("--tasks.sst.files.dev d.csv", "tasks.sst.files.dev", "d.csv"),
        ("--tasks.para.text-columns q1 q2", "tasks.para.text_columns", ("q1", "q2")),
        ("--log.no-tensorboard", "log.tensorboard", False),
    ],
)
def test_every_field_is_a_flag(flags, key, value):
    base = load_config(None, {"smart.radius": 0.5})
    expected = load_config(None, {"smart.radius": 0.5, key: value})
    assert parse_cli(flags.split(), base) == expected


def test_flags_override_the_file(tmp_path):
    path = config_file(tmp_path, "seed: 3\nrounds: 755\nsmart: {weight: 1, radius: 0.5}\n")
    for argv in (["--config", str(path), "--smart.weight", "5"], ["--seed=3", f"--config={path}"]):
        config = parse_run_config(argv, "sbrrt-fast train")
        weight = 5.0 if "5" in argv else 1.0
        assert (config.seed, config.rounds) == (3, 755)
        assert config.smart == SmartConfig(weight=weight, radius=0.5)


def test_epochs_as_a_flag_are_not_lost_behind_the_files_rounds(tmp_path):
    path = str(config_file(tmp_path, "rounds: 755\n"))
    assert parse_run_config(["--config", path, "--epochs", "2"], "p").rounds is None
    assert parse_run_config(["--config", path, "--seed", "2"], "p").rounds == 755
    both = parse_run_config(["--config", path, "--epochs", "2", "--rounds", "9"], "p")
    assert (both.rounds, both.epochs) == (9, 2)


def test_backbone_of_the_file_gives_way_to_the_flag(tmp_path):
    path = str(config_file(tmp_path, "backbone: a\n"))
    assert parse_run_config(["--config", path], "p").model.backbone == "a"
    for flag in ("--backbone", "--model.backbone"):
        config = parse_run_config(["--config", path, flag, "b"], "p")
        assert config.model.backbone == "b"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backbon b", "unknown flag '--backbon'; did you mean '--backbone'?"),
        ("--smart.radus 1", "unknown flag '--smart.radus'; did you mean '--smart.radius'?"),
        ("--learning-rate=1", "'--learning-rate'; did you mean '--optimizer.learning-rate'?"),
        ("--zzz", "unknown flag '--zzz'; see --help"),
        ("ten", "unexpected argument 'ten'"),
        ("--seed ten", "--seed: invalid literal for int() with base 10: 'ten'"),
        ("--rounds 1.5", "could be instantiated from ['1.5']."),
        ("--mode fine", "invalid choice 'fine' for argument '--mode'"),
        ("--rounds", "Missing value for argument '--rounds'"),
        ("--rounds 0", "rounds: must be at least 1, got 0"),
        ("--tasks.sts.encoding cross", "tasks.sts.encoding: head 'cosine' compares two"),
        ("--config", "--config: give one YAML file"),
        ("--config a --config b", "--config: give one YAML file"),
        ("--config none.yaml", "none.yaml: cannot be read"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_each_mistake_in_flags_is_one_line_and_status_2(
    flags, message, columns, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["train", *flags.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("sbrrt-fast train: ")
    assert output.err.count("\n") == 1 and output.err.endswith("\n")
    assert message in output.err
    assert not set("│─╭╰") & set(output.err)


def test_a_recipe_is_taken_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = parse_run_config(["--config", "sbrrt", "--seed", "5"], "p")
    assert config == load_config(recipe_path("sbrrt"), {"seed": 5})
    assert capsys.readouterr().out == ""


def test_a_file_of_a_recipe_s_name_wins_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sbrrt").write_text("seed: 77\n")
    assert parse_run_config(["--config", "sbrrt"], "p").seed == 77
    assert (
        capsys.readouterr().out == "--config: sbrrt is the file here, not a recipe of that name\n"
    )


@pytest.mark.parametrize("text", ["./sbrrt", "configs/sbrrt", "sbrrt.yml"])
def test_a_path_is_no_recipe_s_name(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", text]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err


def test_an_unknown_recipe_is_one_line(capsys):
    assert main(["train", "--config", "sbrt"]) == 2
    error = capsys.readouterr().err
    assert "--config: there is no recipe 'sbrt'; did you mean 'sbrrt'?" in error
    assert error.count("\n") == 1


def told(capsys, *argv: str) -> str:
    """What ``train`` with these arguments prints before it exits with status 0."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", *argv])
    assert not stopped.value.code
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"^ +(--\w[\w.-]*)", text, re.M))


@pytest.fixture
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("_wide")
def test_help_shows_the_common_flags_and_names_the_groups(capsys):
    text = told(capsys, "--help")
    assert "--config FILE|RECIPE" in text and "--backbone" in text
    assert "--optimizer.learning-rate FLOAT" in text and "(default: 0.0001)" in text
    assert len(text.splitlines()) <= 60 and "``" not in text
    assert "--smart.sigma" not in text and "--tasks" not in text
    for group in ("run", "tasks", "model", "smart", "early_stopping", "all"):
        assert f"\n  {group} " in text


@pytest.mark.usefixtures("_wide")
def test_every_flag_is_in_its_group_and_in_all(capsys):
    first, *others = RunConfig().tasks
    every = {
        "--" + key.replace("_", "-")
        for key in config_leaves(RunConfig())
        if not key.startswith(tuple(f"tasks.{name}." for name in others))
    }
    in_all = flags_in(told(capsys, "--help", "all"))
    assert every - in_all == set()
    in_groups = [flags_in(told(capsys, "--help", group)) for group in groups(RunConfig())]
    assert set().union(*in_groups) == in_all
    assert f"--tasks.{first}.weight" in in_all


@pytest.mark.usefixtures("_wide")
def test_help_shows_the_values_of_the_configuration(capsys):
    assert "off. (default: 1.0)" in told(capsys, "--config", "sbrrt", "--help=smart")
    assert "off. (default: 0.0)" in told(capsys, "--help", "smart")
    found = flags_in(told(capsys, "--resume", "--help", "early-stopping"))
    assert found == {"--early-stopping.patience", "--early-stopping.min-delta"}


def test_an_unknown_group_is_one_line(capsys):
    assert main(["train", "--help", "smrt"]) == 2
    error = capsys.readouterr().err
    assert "--help: there is no group of flags 'smrt'; did you mean 'smart'?" in error
    assert error.count("\n") == 1
