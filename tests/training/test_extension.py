"""A finished run that is extended: the longer run bit for bit, or refused, or as it is defined."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.config import OptimizerConfig, RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.training.extension import differing_schedules
from tests.helpers import read_log, small_sample, tiny_backbone
from tests.training.test_resume import (
    contents,
    inputs,
    refused,
    same_run,
    same_state,
    signal_in_round,
)

RUN = (
    *("--round.batch-size", "4", "--seed", "3", "--smart.weight", "1", "--bregman.weight", "0.5"),
    *("--log.every", "3", "--log.evaluate-every", "5", "--log.state-every", "4"),
    *("--log.no-tensorboard", "--log.keep-best", "2", "--log.keep-last", "2"),
)
CONSTANT = ("--optimizer.decay", "constant", "--optimizer.warmup", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone, of runs of 10 rounds and of one of 14."""
    folder = tmp_path_factory.mktemp("extension")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    for name, rounds, flags in (
        ("constant", "10", CONSTANT),
        ("linear", "10", ()),
        ("whole", "14", CONSTANT),
    ):
        train(folder, folder / name, "--rounds", rounds, *flags)
    return folder


def train(place: Path, output: Path, *flags: str, status: int = 0) -> None:
    arguments = [*inputs(place), "--output", str(output), *RUN, *flags]
    assert main(["train", *arguments]) == status


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run with a constant learning rate."""
    return Path(shutil.copytree(place / "constant", tmp_path / "run"))


@pytest.fixture
def linear(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "linear", tmp_path / "linear"))


def resume(run: Path, *flags: str) -> list[str]:
    return ["train", "--output", str(run), "--resume", *flags]


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "models").iterdir())


def settings(run: Path) -> RunConfig:
    return load_config(run / "config.yaml")


def test_an_extended_run_is_the_longer_one_bit_for_bit(place, run, capsys):
    assert main(resume(run, "--rounds", "14")) == 0
    line = "extended after round 10 to 14 rounds, as in a run of that length from its start"
    assert line in capsys.readouterr().out
    assert same_run(run, place / "whole") and same_state(run, place / "whole")
    assert kept(run) == kept(place / "whole")
    assert settings(run) == settings(place / "whole")


@pytest.mark.parametrize("number", [11, 13])
def test_an_interrupted_extension_goes_on(place, run, monkeypatch, number):
    with monkeypatch.context() as patch:
        signal_in_round(patch, number, signal.SIGTERM)
        assert main(resume(run, "--rounds", "14")) == 143
    assert not (run / "metrics.json").exists()
    assert main(resume(run)) == 0
    assert same_run(run, place / "whole") and kept(run) == kept(place / "whole")


def test_an_extension_killed_before_its_first_round_goes_on(place, run, monkeypatch):
    def killed(self, logger, output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.training.trainer.Trainer._train_or_stop", killed)
        assert main(resume(run, "--rounds", "14")) == 130
    assert main(resume(run)) == 0
    assert same_run(run, place / "whole")


def test_an_extension_that_has_begun_keeps_its_length(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_in_round(patch, 11, signal.SIGTERM)
        assert main(resume(run, "--rounds", "14")) == 143
    assert "rounds 14, not 20" in refused(resume(run, "--rounds", "20"), capsys)


def test_a_run_may_be_extended_twice(place, run):
    assert main(resume(run, "--rounds", "12")) == 0
    assert main(resume(run, "--rounds", "14")) == 0
    logged = [r["round"] for r in read_log(run) if "dev/overall" in r]
    assert logged == [5, 10, 12, 14]  # one more than a run of 14 rounds
    assert settings(run).extended == ()


def test_epochs_extend_as_rounds_do(place, tmp_path):
    flags = (*CONSTANT, "--log.evaluate-every", "None")  # once per epoch
    for name, epochs in (("short", "1"), ("long", "2")):
        train(place, tmp_path / name, "--epochs", epochs, *flags)
    assert main(resume(tmp_path / "short", "--epochs", "2")) == 0
    assert same_run(tmp_path / "short", tmp_path / "long")


def test_an_evaluation_that_was_left_out_is_made_up_for(place, tmp_path):
    run = tmp_path / "run"
    train(place, run, "--rounds", "10", *CONSTANT, "--skip-final-evaluation")
    assert [r["round"] for r in read_log(run) if "dev/overall" in r] == [5]
    assert main(resume(run, "--rounds", "14", "--no-skip-final-evaluation")) == 0
    assert same_run(run, place / "whole")


def test_other_schedules_are_refused_with_what_to_do(linear, capsys):
    before = contents(linear)
    message = refused(resume(linear, "--rounds", "14"), capsys)
    assert "its 10 rounds are not the first of a run of 14: learning rates" in message
    assert "--extend stretched" in message and "--overwrite" in message
    assert contents(linear) == before


def test_stretched_schedules_are_those_of_the_longer_run_from_there(place, linear, capsys):
    assert main(resume(linear, "--rounds", "14", "--extend", "stretched")) == 0
    assert "with the schedules that a run of that length has there" in capsys.readouterr().out
    rates = {r["round"]: r["learning_rate/encoder"] for r in read_log(linear) if "num_rounds" in r}
    longer = (14 * 3 - 36) / (14 * 3 - 4)  # the 36th of 42 steps, 4 of which warm up
    assert rates[12] == pytest.approx(1e-4 * longer + 1e-4 / (14 * 3 - 4))
    assert settings(linear).extended == (10,)
    again = ["--config", str(linear / "config.yaml"), "--output", str(place / "again")]
    assert "extended after round 10" in refused(["train", *again], capsys)
    assert not (place / "again").exists()


def test_an_interrupted_stretched_extension_goes_on(place, linear, tmp_path, monkeypatch):
    other = Path(shutil.copytree(linear, tmp_path / "other"))
    flags = ("--rounds", "14", "--extend", "stretched")
    assert main(resume(linear, *flags)) == 0
    with monkeypatch.context() as patch:
        signal_in_round(patch, 12, signal.SIGTERM)
        assert main(resume(other, *flags)) == 143
    assert main(resume(other)) == 0
    assert same_run(linear, other) and settings(linear) == settings(other)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "this run is finished; there is nothing to resume. To extend it give more --epochs"),
        (("--rounds", "10"), "there is nothing to resume"),
        (("--rounds", "9"), "finished after 10 rounds and 9 are asked for"),
        (("--rounds", "14", "--seed", "4"), "seed 3, not 4"),
        (("--rounds", "14", "--early-stopping.patience", "3"), "patience None; an extended run"),
    ],
)
def test_what_cannot_be_extended_is_refused(run, capsys, flags, message):
    before = contents(run)
    assert message in refused(resume(run, *flags), capsys)
    assert contents(run) == before


@pytest.mark.parametrize("flag", ["--log.no-keep-state", "--log.state-every=0"])
def test_without_a_state_there_is_nothing_to_go_on_from(place, tmp_path, capsys, flag):
    run = tmp_path / "run"
    train(place, run, "--rounds", "5", *CONSTANT, flag)
    assert not (run / "state").exists()
    message = refused(resume(run, "--rounds", "14"), capsys)
    assert "kept no state, so it cannot be extended" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"optimizer": OptimizerConfig(decay="linear", warmup=0.0)}, "learning rates"),
        ({"optimizer": OptimizerConfig(decay="constant", warmup=0.5)}, "learning rates"),
        ({"bregman": replace(RunConfig().bregman, weight=1.0, schedule="paper")}, "momentum"),
        ({"round": replace(RunConfig().round, schedule="annealed")}, "drawing of tasks"),
    ],
)
def test_what_depends_on_the_number_of_rounds_is_named(change, reason):
    constant = RunConfig(optimizer=OptimizerConfig(decay="constant", warmup=0.0))
    reasons = differing_schedules(replace(constant, **change), 20, 20, 60, 10)
    assert len(reasons) == (reason is not None)
    assert reason is None or reason in reasons[0]


def test_a_run_that_was_extended_says_how_long_it_is(run):
    assert main(resume(run, "--rounds", "14")) == 0
    assert json.loads((run / "metrics.json").read_text())["rounds"] == 14
