"""Early stopping and the models that are kept, also across an interruption."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sbrrt_fast.cli import main
from sbrrt_fast.config import EarlyStoppingConfig, LogConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training import trainer
from sbrrt_fast.training.early_stopping import Waiting
from sbrrt_fast.training.kept_models import kept_rounds, model_folder
from tests.helpers import read_log, small_sample, tiny_backbone
from tests.training.test_resume import contents, inputs, refused, same_run, signal_in_round

SCORES = (0.5, 0.6, 0.601, 0.59, 0.62, 0.3, 0.61, 0.62)  # of the evaluations, one in two rounds
RUN = (
    *("--rounds", "16", "--round.batch-size", "4", "--optimizer.learning-rate", "1e-3"),
    *("--log.every", "3", "--log.evaluate-every", "2", "--log.state-every", "3"),
    *("--log.no-tensorboard", "--optimizer.decay", "constant", "--optimizer.warmup", "0"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone."""
    folder = tmp_path_factory.mktemp("early")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    return folder


@pytest.fixture(autouse=True)
def _given_scores(monkeypatch):
    """Evaluations give the scores above, each after its own number of rounds."""
    original = trainer.Trainer._scores

    def scores(self, model, limit):
        is_trained = model is self.model  # else it is the best one, scored again at the end
        done = self.progress.cursor.round if is_trained else self.progress.best["round"]
        return original(self, model, limit) | {"overall": SCORES[done // 2 - 1]}

    monkeypatch.setattr(trainer.Trainer, "_scores", scores)


def train(place: Path, output: Path, *flags: str) -> int:
    return main(["train", *inputs(place), "--output", str(output), *RUN, *flags])


def evaluated(run: Path) -> list[int]:
    return [record["round"] for record in read_log(run) if "dev/overall" in record]


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("patience", "min_delta", "rounds"),
    [("1", "0", 8), ("2", "0", 14), ("2", "0.005", 8), ("3", "0.05", 10), ("9", "0", 16)],
)
def test_a_run_ends_when_its_patience_does(place, tmp_path, capsys, patience, min_delta, rounds):
    flags = ("--early-stopping.patience", patience, "--early-stopping.min-delta", min_delta)
    assert train(place, tmp_path / "run", *flags) == 0
    found = metrics(tmp_path / "run")
    assert evaluated(tmp_path / "run")[-1] == found["rounds"] == rounds
    assert found["stopped_early"] == (rounds < 16)
    assert (f"stopped early after round {rounds}: " in capsys.readouterr().out) == (rounds < 16)


def test_the_best_model_needs_no_min_delta(place, tmp_path):
    flags = ("--early-stopping.patience", "2", "--early-stopping.min-delta", "0.005")
    assert train(place, tmp_path / "run", *flags) == 0
    assert metrics(tmp_path / "run")["best_round"] == 6  # 0.601, above 0.6 by less


@pytest.mark.parametrize("number", [3, 5, 12, 14])
def test_a_resumed_run_stops_where_it_would_have(place, tmp_path, monkeypatch, number):
    flags = ("--early-stopping.patience", "2", "--log.keep-best", "2", "--log.keep-last", "2")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(place, whole, *flags) == 0
    with monkeypatch.context() as patch:
        signal_in_round(patch, number, signal.SIGTERM)
        status = train(place, run, *flags)
    if status:  # the signal in the last round waits for nothing any more
        assert status == 143
        assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, whole)
    assert kept(run) == kept(whole) == ["round-10", "round-12", "round-14"]


def test_more_patience_goes_on_as_if_it_had_been_there(place, tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(place, whole, "--early-stopping.patience", "3") == 0
    assert train(place, run, "--early-stopping.patience", "1") == 0
    assert metrics(run)["rounds"] == 8
    resume = ["train", "--output", str(run), "--resume"]
    message = refused([*resume, "--rounds", "20"], capsys)
    assert "finished after 8 rounds and its patience is still at an end" in message
    assert main([*resume, "--early-stopping.patience", "3"]) == 0
    assert same_run(run, whole)


def test_undefined_scores_use_up_patience():
    waiting = Waiting().after(None, 5, 0.0)
    assert waiting == Waiting(None, 0, 1)
    assert waiting.is_over(EarlyStoppingConfig(patience=1))
    assert not waiting.is_over(EarlyStoppingConfig())
    assert waiting.after(0.1, 10, 0.0) == Waiting(0.1, 10, 0)
    assert Waiting(0.5, 10).after(0.6, 15, 0.1).num_evaluations == 1  # not by more than it
    assert Waiting.restored(waiting.to_meta()) == waiting


@pytest.mark.parametrize(
    ("best", "last", "expected"),
    [
        (1, 1, [10, 16]),
        (2, 1, [10, 16]),
        (3, 1, [10, 14, 16]),
        (1, 3, [10, 12, 14, 16]),
        (99, 1, [2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
def test_the_best_and_the_latest_are_kept(best, last, expected):
    evaluations = [(2 * i + 2, score) for i, score in enumerate(SCORES)]
    config = LogConfig(keep_best=best, keep_last=last)
    assert kept_rounds(evaluations, config) == expected


def test_a_model_without_a_score_is_kept_as_one_of_the_latest_alone():
    evaluations = [(2, None), (4, 0.1), (6, None)]
    assert kept_rounds(evaluations, LogConfig(keep_best=3)) == [4, 6]


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "models").iterdir())


def test_kept_models_are_those_of_their_rounds(place, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(place, run, "--log.keep-best", "3") == 0
    assert kept(run) == ["round-10", "round-14", "round-16"]
    heads = {name: load_file(run / name / "heads.safetensors") for name in ("best", "last")}
    for name, twin in (("round-10", "best"), ("round-16", "last")):
        found = load_file(run / "models" / name / "heads.safetensors")
        assert all(found[key].equal(heads[twin][key]) for key in found)
    assert main(["evaluate", str(run), "--model", "round-14"]) == 0
    assert "round-14 model" in capsys.readouterr().out
    message = refused(["evaluate", str(run), "--model", "round-2"], capsys)
    assert "invalid choice 'round-2'" in message and "best, last, round-10, round-14" in message


def test_a_name_that_is_a_path_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="invalid choice"):
        model_folder(tmp_path, "../elsewhere")


def test_overwriting_removes_kept_models_and_one_s_own_files_stay(place, tmp_path):
    run = tmp_path / "run"
    assert train(place, run, "--log.keep-last", "2") == 0
    (run / "models" / "round-14" / "mine.txt").write_text("mine")
    assert train(place, run, "--overwrite") == 0
    paths = [path for path in contents(run) if path.startswith("models")]
    assert paths == ["models/round-14/mine.txt"]


def test_a_damaged_kept_model_is_named_on_resume(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_round(patch, 7, signal.SIGTERM)
        assert train(place, run, "--log.keep-last", "2") == 143
    (run / "models" / "round-4" / "heads.safetensors").write_bytes(b"")
    before = contents(run)
    message = refused(["train", "--output", str(run), "--resume"], capsys)
    assert "models/round-4/heads.safetensors" in message
    assert contents(run) == before


@pytest.mark.parametrize(
    ("flags", "rows", "best"),
    [
        (("--log.evaluate-every", "16"), [], 16),
        ((), [2, 4, 6, 8, 10, 12, 14], 10),
        (("--log.dev-rows", "7"), [2, 4, 6, 8, 10, 12, 14, 16], 10),
    ],
)
def test_the_final_evaluation_is_left_out(place, tmp_path, capsys, flags, rows, best):
    run = tmp_path / "run"
    assert train(place, run, "--skip-final-evaluation", *flags) == 0
    assert evaluated(run) == rows
    found, text = metrics(run), capsys.readouterr().out
    assert found["best_round"] == best
    assert (found["dev"] == {"overall": None}) == (not rows)
    assert ("no model was scored" in text) == (not rows)
    assert ("on 7 dev rows of each task at most" in text) == (flags[:1] == ("--log.dev-rows",))
    for name in ("best", "last"):
        assert main(["evaluate", str(run), "--model", name]) == 0


def test_mistakes_are_named(capsys):
    for flag, value, message in (
        ("--early-stopping.patience", "0", "early_stopping.patience: must be at least 1, got 0"),
        ("--early-stopping.min-delta", "-1", "early_stopping.min_delta: must be at least 0"),
        ("--log.keep-best", "0", "log.keep_best: must be at least 1, got 0"),
    ):
        assert message in refused(["train", flag, value], capsys)
