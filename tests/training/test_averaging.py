"""Averaged weights: their definition, what is evaluated and saved, and resuming with them."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sbrrt_fast.cli import main
from sbrrt_fast.config import AverageConfig, BregmanConfig, RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.io import load_model
from sbrrt_fast.training.averaging import RunAverage, first_averaged
from sbrrt_fast.training.extension import differing_schedules
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import small_sample, tiny_backbone
from tests.model.models import random_model
from tests.training.test_resume import inputs, refused, same_run, same_state, signal_in_round

RUN = (
    *("--rounds", "8", "--round.batch-size", "4", "--seed", "3"),
    *("--bregman.weight", "0.5", "--log.every", "3", "--log.evaluate-every", "2"),
    *("--log.state-every", "3", "--log.no-tensorboard", "--optimizer.learning-rate", "1e-3"),
)
SWA = ("--average.weights", "swa", "--average.start", "0.4")  # from round 3 on
TEACHER = ("--average.weights", "teacher", "--average.start", "0.5")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone."""
    folder = tmp_path_factory.mktemp("averaging")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    return folder


def arguments(place: Path, output: Path, *flags: str) -> list[str]:
    return ["train", *inputs(place), "--output", str(output), *RUN, *flags]


def trained(monkeypatch, argv: list[str]) -> tuple[dict[int, dict[str, Tensor]], Trainer]:
    """Runs a command; the weights after each round in float64, and the trainer."""
    history, trainers = {}, []
    original = Trainer._round

    def recorded(self):
        original(self)
        weights = self.model.state_dict()
        history[self.progress.cursor.round] = {n: x.double() for n, x in weights.items()}
        trainers.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_round", recorded)
        assert main(argv) == 0
    return history, trainers[-1]


def assert_is(folder: Path, weights: dict[str, Tensor], atol: float) -> None:
    """A saved model has these weights, label units included."""
    found = load_model(folder)[0].state_dict()
    assert found.keys() == weights.keys()
    for name, x in weights.items():
        torch.testing.assert_close(found[name].double(), x, rtol=0, atol=atol)


def mean(history: dict[int, dict[str, Tensor]], rounds: list[int]) -> dict[str, Tensor]:
    names = history[rounds[0]]
    return {name: sum(history[r][name] for r in rounds) / len(rounds) for name in names}


@pytest.mark.parametrize(("every", "rounds"), [(1, [3, 4, 5, 6, 7, 8]), (2, [3, 5, 7])])
def test_swa_is_the_mean_of_the_weights_of_its_rounds(
    place, tmp_path, monkeypatch, capsys, every, rounds
):
    run = tmp_path / "run"
    flags = (*SWA, "--average.every", str(every), "--tasks.sts.head", "regression")
    history, trainer = trained(monkeypatch, arguments(place, run, *flags, "--log.keep-last", "9"))
    assert_is(run / "last", mean(history, rounds), 1e-6)
    plain = history[8]["encoder.embeddings.word_embeddings.weight"]
    moved = (plain - mean(history, rounds)["encoder.embeddings.word_embeddings.weight"]).abs().max()
    assert moved > 1e-4  # it is another model than the trained one
    assert_is(run / "models" / "round-2", history[2], 0.0)  # before its start
    for done in (4, 6):
        so_far = [r for r in rounds if r <= done]
        assert_is(run / "models" / f"round-{done}", mean(history, so_far), 1e-6)
    metrics = json.loads((run / "metrics.json").read_text())
    best = metrics["best_round"]
    so_far = [r for r in rounds if r <= best]
    expected = {"weights": "swa", "num_weights": len(so_far)} if so_far else {"weights": "none"}
    assert metrics["average"] == expected
    assert_is(run / "best", mean(history, so_far) if so_far else history[best], 1e-6)
    out = capsys.readouterr().out
    assert (
        f"(mean of the weights after {len(rounds)} rounds)"
        in out.split("round 8: dev")[1].splitlines()[0]
    )
    card = (run / "last" / "README.md").read_text()
    assert f"The model after round 8 (mean of the weights after {len(rounds)} rounds), on" in card
    assert "mean of" not in out.split("round 2: dev")[1].splitlines()[0]
    assert trainer.model.state_dict()["encoder.embeddings.word_embeddings.weight"].equal(
        plain.float()
    )


def test_the_trained_weights_are_those_of_a_run_without_an_average(place, tmp_path, monkeypatch):
    flags = ("--round.update", "joint", "--rounds", "4")
    plain, _ = trained(monkeypatch, arguments(place, tmp_path / "plain", *flags))
    for name, average in (("swa", SWA), ("teacher", TEACHER)):
        history, _ = trained(monkeypatch, arguments(place, tmp_path / name, *flags, *average))
        for done, weights in plain.items():
            assert all(history[done][n].equal(x) for n, x in weights.items()), (name, done)


def test_the_teacher_is_what_is_saved_and_scored(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    argv = arguments(place, run, *TEACHER, "--log.keep-last", "9")
    history, trainer = trained(monkeypatch, argv)
    teacher = trainer.teacher.module.state_dict()
    assert_is(run / "last", {n: x.double() for n, x in teacher.items()}, 0.0)
    assert_is(run / "models" / "round-2", history[2], 0.0)
    out = capsys.readouterr().out
    assert "(the teacher's weights)" in out.split("round 8: dev")[1].splitlines()[0]
    assert "teacher" not in out.split("round 2: dev")[1].splitlines()[0]
    scores = trainer._scores(trainer.teacher.module, None)
    last = next(e for e in reversed(trainer.progress.evaluations) if e[0] == 8)
    assert scores["overall"] == last[1] != trainer._scores(trainer.model, None)["overall"]


@pytest.mark.parametrize(("average", "number"), [(SWA, 3), (SWA, 5), (TEACHER, 5)])
def test_a_resumed_run_is_the_uninterrupted_one(place, tmp_path, monkeypatch, average, number):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(arguments(place, whole, *average)) == 0
    with monkeypatch.context() as patch:
        signal_in_round(patch, number, signal.SIGTERM)
        assert main(arguments(place, run, *average)) == 143
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, whole) and same_state(run, whole)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, whole)]
    assert metrics[0]["average"] == metrics[1]["average"] is not None


def test_a_state_has_the_mean_and_no_more_than_that(place, tmp_path):
    """Before its start there is none to save."""
    for start, has_mean in (("0.1", True), ("1.0", False)):
        run = tmp_path / start
        flags = ("--average.weights", "swa", "--average.start", start)
        with pytest.MonkeyPatch.context() as patch:
            signal_in_round(patch, 4, signal.SIGTERM)
            assert main(arguments(place, run, *flags)) == 143
        names = load_file(run / "state" / "state.safetensors")
        assert any(name.startswith("average.") for name in names) is has_mean


def test_first_round_and_counts():
    rounds = [first_averaged(AverageConfig(start=x), 10) for x in (0.0, 0.04, 0.5, 0.75, 1.0)]
    assert rounds == [1, 1, 5, 8, 10]


def test_a_mean_of_equal_weights_is_these_weights():
    model = random_model()
    average = RunAverage(model, None, AverageConfig(weights="swa", start=0.0), 50)
    for done in range(1, 51):
        average.after_round(done)
    assert average.num_weights == 50
    pairs = zip(model.parameters(), average.model(50).parameters(), strict=True)
    assert all(a.equal(b) and a is not b for a, b in pairs)


def test_a_longer_run_may_begin_to_average_later():
    config = RunConfig(average=AverageConfig(weights="swa", start=0.5))
    schedules = {"decay": "constant", "warmup": 0.0}
    config = replace(config, optimizer=replace(config.optimizer, **schedules))
    reasons = differing_schedules(config, 10, 10, 14, 5)
    assert reasons == ["what is averaged (average.start)"]
    assert differing_schedules(config, 4, 10, 14, 5) == []  # stopped before either began
    from_start = replace(config, average=replace(config.average, start=0.0))
    assert differing_schedules(from_start, 10, 10, 14, 5) == []


def test_a_run_that_is_stretched_averages_from_where_the_longer_one_does(
    place, tmp_path, monkeypatch
):
    """8 rounds whose mean begins after the 4th, and then 20, whose mean begins after the 10th."""
    run, flags = tmp_path / "run", ("--average.weights", "swa", "--average.start", "0.5")
    assert main(arguments(place, run, *flags)) == 0
    resume = ["train", "--output", str(run), "--resume", "--rounds", "20", "--extend", "stretched"]
    history, _ = trained(monkeypatch, resume)
    assert_is(run / "last", mean(history, list(range(10, 21))), 1e-6)


def test_a_teacher_that_is_not_there_is_refused(place, tmp_path, capsys):
    message = refused(arguments(place, tmp_path / "x", *TEACHER, "--bregman.weight", "0"), capsys)
    assert "average.weights: must be none or swa with a bregman.weight of 0" in message


@pytest.mark.parametrize(("key", "value"), [("start", -0.1), ("start", 1.1), ("every", 0)])
def test_senseless_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"average\.{key}: must be "):
        load_config(None, {f"average.{key}": value})


def test_the_teacher_of_a_run_needs_its_weight():
    with pytest.raises(ConfigError, match=r"average\.weights"):
        RunConfig(average=AverageConfig(weights="teacher"))
    RunConfig(average=AverageConfig(weights="teacher"), bregman=BregmanConfig(weight=0.1))
