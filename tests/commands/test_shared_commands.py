"""``evaluate`` and ``predict`` on several ranks: one rank's results, written and printed once."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from sbrrt_fast import load
from sbrrt_fast.commands import evaluate, predict, trained_run
from sbrrt_fast.errors import ConfigError, DataError, OutputError, SbrrtError
from sbrrt_fast.training.ranks.ranks import ONE_RANK
from tests.helpers import train_tiny
from tests.training.ranks.threads import on_ranks, outcomes


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def shared(monkeypatch):
    """Runs a command on ranks of one process; returns what ``runner`` does."""
    here = threading.local()
    monkeypatch.setattr(trained_run, "connect", lambda *_: getattr(here, "ranks", ONE_RANK))
    parsing = threading.Lock()
    for command in (evaluate, predict):
        parse = command.parse_arguments

        def locked(*arguments, parse=parse):
            with parsing:
                return parse(*arguments)

        monkeypatch.setattr(command, "parse_arguments", locked)

    def start(size: int, command, *argv: str | Path, runner=on_ranks) -> list:
        def work(ranks):
            here.ranks = ranks
            return command.main(list(map(str, argv)))

        return runner(size, work)

    return start


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("size", [2, 5])
def test_evaluate_writes_and_prints_once_what_one_process_does(shared, run, tmp_path, capsys, size):
    flags = ["--output", tmp_path / "scores.json", "--errors", tmp_path / "errors"]

    def everything() -> tuple:
        scores = (tmp_path / "scores.json").read_bytes()
        rows = files_of(run / "evaluation"), files_of(tmp_path / "errors")
        return scores, rows, capsys.readouterr().out

    capsys.readouterr()
    assert evaluate.main([str(run), *map(str, flags)]) == 0
    alone = everything()
    shutil.rmtree(run / "evaluation")
    shutil.rmtree(tmp_path / "errors")
    assert shared(size, evaluate, run, *flags) == [0] * size
    assert everything() == alone


def test_predict_writes_and_prints_once_what_one_process_does(shared, run, capsys):
    capsys.readouterr()
    assert predict.main([str(run)]) == 0
    alone = files_of(run / "predictions"), capsys.readouterr().out, (run / "run.json").read_bytes()
    shutil.rmtree(run / "predictions")
    assert shared(3, predict, run) == [0] * 3
    again = files_of(run / "predictions"), capsys.readouterr().out, (run / "run.json").read_bytes()
    assert again == alone and len(alone[0]) == 6


@pytest.mark.parametrize("flags", [(), ("--probabilities",)])
def test_texts_are_predicted_once(shared, run, tmp_path, capsys, flags):
    texts, output = tmp_path / "texts.txt", tmp_path / "out.txt"
    texts.write_text("".join(f"a film about {'rice ' * (i % 17)}\n" for i in range(200)))
    argv = [run, "--input", texts, "--task", "sst", *flags]
    capsys.readouterr()
    assert predict.main(list(map(str, argv))) == 0
    alone = capsys.readouterr().out
    assert alone.count("\n") == 200
    assert shared(3, predict, *argv) == [0] * 3
    assert capsys.readouterr().out == alone
    assert shared(3, predict, *argv, "--output", output) == [0] * 3
    assert output.read_text() == alone
    assert capsys.readouterr().err.count(f"{output}: 200 rows") == 1


def test_only_the_first_rank_fails_where_rows_are_left_out(shared, run, tmp_path, capsys):
    table = tmp_path / "a.jsonl"  # one thread at a time reads CSV
    table.write_text("".join(f'{{"sentence": "{text}"}}\n' for text in ("a joy", " ", "slow")))
    argv = [run, "--input", table, "--task", "sst"]
    capsys.readouterr()
    assert shared(2, predict, *argv, "--skip-bad-rows") == [1, 0]
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 2 and shown.err.count("left out 1 row") == 1
    errors = shared(2, predict, *argv, "--output", tmp_path / "out.jsonl", runner=outcomes)
    assert all(isinstance(error, DataError) for error in errors)
    assert not (tmp_path / "out.jsonl").exists()


def test_standard_input_is_refused(shared, run):
    argv = [run, "--input", "-", "--task", "sst"]
    errors = shared(2, predict, *argv, runner=outcomes)
    assert all(isinstance(error, ConfigError) for error in errors)
    assert str(errors[0]) == (
        "--input -: 2 processes cannot share standard input; give a file, or run one process "
        "without torchrun"
    )


def test_what_the_first_rank_cannot_write_ends_all(shared, run):
    shutil.rmtree(run / "evaluation")
    (run / "evaluation").write_text("mine")
    errors = shared(3, evaluate, run, runner=outcomes)
    assert isinstance(errors[0], OutputError)
    assert all(isinstance(error, SbrrtError) for error in errors)
    assert {str(error) for error in errors} == {str(errors[0])}
    (run / "predictions").write_text("mine")
    errors = shared(2, predict, run, runner=outcomes)
    assert all("predictions is a file" in str(error) for error in errors)


@pytest.mark.parametrize(
    ("command", "flags", "problem"),
    [
        (evaluate, ["--model", "round-7"], "round-7"),
        (evaluate, ["--split", "test"], "has no labels to score there"),
        (evaluate, ["--data-dir", "nowhere"], "there is no such folder"),
        (predict, ["--split", "dev", "--data-dir", "."], "nothing to predict"),
        (predict, ["--input", "nowhere.txt", "--task", "sst"], "no such file"),
        (predict, ["--input", "nowhere.txt", "--task", "sts", "--probabilities"], "which have"),
    ],
)
def test_bad_input_ends_all_ranks_with_one_message(
    shared, run, tmp_path, monkeypatch, command, flags, problem
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    errors = shared(2, command, run, *flags, runner=outcomes)
    assert all(isinstance(error, SbrrtError) for error in errors), errors
    assert problem in str(errors[0]) and str(errors[0]) == str(errors[1])


def test_predictions_from_python_are_shared(run):
    texts = [f"a film about {'rice ' * (i % 17)}" for i in range(60)]

    def work(ranks):
        model = load(run, device="cpu", ranks=ranks)
        lines = [list(window) for window in model.predict_windows("sst", texts, num_rows=25)]
        return lines, model.embed(iter(texts))

    lines, vectors = work(ONE_RANK)
    for others_lines, others_vectors in on_ranks(2, work):
        assert others_lines == lines and np.array_equal(others_vectors, vectors)


def test_a_bad_text_in_a_later_window_ends_all_ranks(run):
    texts = [*["slow"] * 30, " "]

    def work(ranks):
        model = load(run, device="cpu", ranks=ranks)
        return [len(window) for window in model.predict_windows("sst", texts, num_rows=25)]

    errors = outcomes(3, work)
    assert {str(error) for error in errors} == {str(errors[0])} and "row 31" in str(errors[0])
