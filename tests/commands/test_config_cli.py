"""Flags: the configurations they make, and how each mistake is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.config import SmartConfig
from sbrrt_fast.config_cli import parse_cli, parse_run_config
from sbrrt_fast.config_io import load_config
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


def test_help_names_flags_their_defaults_and_config(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_run_config(["--help"], "sbrrt-fast train")
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert "--config FILE" in text and "--backbone" in text
    assert "--optimizer.learning-rate FLOAT" in text and "(default: 0.0001)" in text
