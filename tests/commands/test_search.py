"""``sbrrt-fast search`` from end to end: trials, their folders, kills, and several at once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")

import sbrrt_fast.experiments.search.trial as trial_module  # noqa: E402
from sbrrt_fast.cli import main  # noqa: E402
from sbrrt_fast.config_io import load_config  # noqa: E402
from sbrrt_fast.errors import ConfigError, DataError, DivergedError  # noqa: E402
from tests.commands.searches import GRID, PROGRAM, arguments, search_flags, table  # noqa: E402


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> list[str]:
    """Flags of every search here."""
    return search_flags(tmp_path_factory.mktemp("search"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(shared, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a search with two seeds a trial, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    command = [PROGRAM, *arguments(shared, folder, "--trials", "6", "--seeds", "2")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "trial 6 of 6, best 0." in result.stderr  # its bar
    return folder, result.stdout


def test_every_trial_is_in_the_tables(searched):
    folder, printed = searched
    found = table(folder)
    assert [trial["number"] for trial in found["trials"]] == list(range(1, 7))
    assert {trial["state"] for trial in found["trials"]} <= {"finished", "pruned"}
    for trial, row in zip(found["trials"], rows(folder), strict=True):
        assert row["state"] == trial["state"]
        assert float(row["round.batch_size"]) == trial["settings"]["round.batch_size"]
        assert json.loads(row["optimizer.betas"]) == trial["settings"]["optimizer.betas"]
        assert (row["value"] == "") is (trial["value"] is None) is (trial["state"] != "finished")
        assert f"trial {trial['number']} of 6 starts: " in printed
    assert (folder / "out" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "train it with `sbrrt-fast train --config " in printed


def test_a_value_is_the_mean_of_the_seeds_final_scores(searched):
    folder, _ = searched
    finished = [trial for trial in table(folder)["trials"] if trial["state"] == "finished"]
    assert len(finished) >= 5  # the pruner's first
    for trial in finished:
        runs = [folder / "out" / "trials" / f"{trial['number']:04d}" / f"seed{s}" for s in (0, 1)]
        metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
        scores = [m["dev"]["overall"] for m in metrics]
        assert trial["value"] == pytest.approx(sum(scores) / 2, abs=1e-12)
        assert trial["scores"] == {"0": scores[0], "1": scores[1]} and scores[0] != scores[1]
        assert [m["seed"] for m in metrics] == [0, 1]
        assert list(trial["curve"]) == ["25", "50", "75", "100", "125", "150", "175", "200"]


def test_the_best_recipe_trains_as_its_trial_did(searched, tmp_path):
    """From another folder, with the trial's scores."""
    folder, _ = searched
    found = table(folder)
    best = max((t for t in found["trials"] if t["value"] is not None), key=lambda t: t["value"])
    assert (found["best"], found["best_value"]) == (best["number"], best["value"])
    recipe = folder / "out" / "best.yaml"
    head = recipe.read_text(encoding="utf-8").splitlines()[:2]
    assert head[0].startswith(f"# Trial {best['number']}, the best of 6 trials (")
    assert head[0].endswith(f"dev overall {best['value']:.4f}") and "(seeds 0, 1;" in head[1]
    config = load_config(recipe)
    assert config.round.batch_size == best["settings"]["round.batch_size"]
    assert list(config.optimizer.betas) == best["settings"]["optimizer.betas"]
    assert config.log.keep_state  # which trials have not
    flags = ["--config", str(recipe), "--output", str(tmp_path / "run"), "--seed", "1"]
    assert main(["train", *flags]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dev"]["overall"] == best["scores"]["1"]


def test_the_best_trial_alone_keeps_its_weights(searched):
    folder, _ = searched
    kept = {path.parents[2].name for path in folder.rglob("best/model.safetensors")}
    assert kept == {f"{table(folder)['best']:04d}"}
    for trial in table(folder)["trials"]:
        place = folder / "out" / "trials" / f"{trial['number']:04d}"
        assert json.loads((place / "trial.json").read_text()) == trial
        assert (place / "seed0" / "metrics.jsonl").is_file()
        assert not (place / "seed0" / "state").exists()


def test_a_finished_search_is_kept_and_can_be_longer(searched, shared, capfd):
    folder, _ = searched
    before = table(folder)
    flags = arguments(shared, folder, "--seeds", "2")
    assert main([*flags, "--trials", "6"]) == 0
    assert "starts" not in capfd.readouterr().out and table(folder) == before
    assert main([*flags, "--trials", "7"]) == 0
    assert table(folder)["trials"][:6] == before["trials"]
    assert len(table(folder)["trials"]) == 7


def fake_curves(monkeypatch, curves: list[list[float]]) -> None:
    """Runs whose dev scores are those given, instead of training."""
    taken = iter(curves)

    def complete(config, log, callbacks, title):
        scores = next(taken)
        info = trial_module.RunInfo("0" * 16, config, len(scores), 0)
        config.output.mkdir(parents=True)
        (config.output / "last").mkdir()
        for callback in callbacks:
            callback.on_start(info)
        for done, score in enumerate(scores, 1):
            for callback in callbacks:
                callback.on_evaluate(done, {"overall": score})
        metrics = {"dev": {"overall": max(scores)}, "train_seconds": 1.0}
        (config.output / "metrics.json").write_text(json.dumps(metrics))

    def read(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
        return SimpleNamespace(metrics=metrics)

    monkeypatch.setattr(trial_module, "complete_run", complete)
    monkeypatch.setattr(trial_module, "read_run", read)


def test_a_curve_below_the_median_is_pruned_and_marked(shared, tmp_path, monkeypatch, capsys):
    good, bad = [0.4, 0.5, 0.6, 0.7], [0.1, 0.2, 0.9, 0.9]
    fake_curves(monkeypatch, [*[good] * 5, bad, good])
    assert main(arguments(shared, tmp_path, "--trials", "7", "--sampler", "random")) == 0
    trial = table(tmp_path)["trials"][5]
    assert trial["state"] == "pruned" and trial["value"] is None
    assert trial["curve"] == {"25": 0.1}
    reason = "after round 1 of 4, with a dev score (overall) of 0.1000"
    assert trial["reason"] == reason and rows(tmp_path)[5]["reason"] == reason
    place = tmp_path / "out" / "trials" / "0006"
    assert json.loads((place / "trial.json").read_text()) == trial
    assert f"trial 6 of 7: pruned {reason}; best 0.7000 (trial 1)" in capsys.readouterr().out
    assert [t["state"] for t in table(tmp_path)["trials"]].count("finished") == 6


def test_the_last_score_of_a_whole_trial_prunes_nothing(shared, tmp_path, monkeypatch):
    """It would throw away what is trained already; between seeds it saves the other ones."""
    fake_curves(monkeypatch, [*[[0.5, 0.5]] * 10, [0.6, 0.1], [0.1, 0.1]])
    flags = ("--trials", "6", "--seeds", "2", "--sampler", "random")
    assert main(arguments(shared, tmp_path, *flags)) == 0
    assert table(tmp_path)["trials"][5]["state"] == "finished"
    assert table(tmp_path)["trials"][5]["value"] == pytest.approx(0.35)


def test_without_a_pruner_all_are_trained(shared, tmp_path, monkeypatch):
    fake_curves(monkeypatch, [*[[0.5, 0.5]] * 5, [0.1, 0.2]])
    flags = ("--trials", "6", "--pruner", "none", "--sampler", "random")
    assert main(arguments(shared, tmp_path, *flags)) == 0
    assert {t["state"] for t in table(tmp_path)["trials"]} == {"finished"}


def test_a_trial_that_diverges_has_failed_and_the_others_go_on(shared, tmp_path, monkeypatch):
    original, calls = trial_module.complete_run, []

    def diverges(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise DivergedError("round 2: sst/loss is nan, so training cannot go on")
        original(*arguments)

    monkeypatch.setattr(trial_module, "complete_run", diverges)
    assert main(arguments(shared, tmp_path, "--trials", "2", "--rounds", "1")) == 0
    first, second = table(tmp_path)["trials"]
    assert first["state"] == "failed" and first["reason"].startswith("round 2: sst/loss is nan")
    assert second["state"] == "finished" and table(tmp_path)["best"] == 2


@pytest.mark.parametrize("error", [ConfigError("no such thing"), MemoryError("12 GiB")])
def test_settings_that_cannot_be_trained_with_fail_a_trial(shared, tmp_path, monkeypatch, error):
    """After one that could; before, they are a mistake in the recipe."""
    fake_curves(monkeypatch, [[0.5, 0.6]])
    flags = arguments(shared, tmp_path, "--trials", "1")
    assert main(flags) == 0
    monkeypatch.setattr(trial_module, "complete_run", raises(error))
    assert main([*flags, "--trials", "2"]) == 0
    trial = table(tmp_path)["trials"][1]
    assert trial["state"] == "failed" and str(error) in trial["reason"]


def test_settings_that_no_trial_could_be_trained_with_end_the_search(
    shared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trial_module, "complete_run", raises(ConfigError("no such thing")))
    assert main(arguments(shared, tmp_path, "--trials", "3")) == 2
    assert "trial 1: no such thing; then go on with the same command" in capsys.readouterr().err
    assert [t["state"] for t in table(tmp_path)["trials"]] == ["running"]


def test_a_trial_without_a_score_has_failed(shared, tmp_path, monkeypatch):
    fake_curves(monkeypatch, [[float("nan")], [0.5]])
    assert main(arguments(shared, tmp_path, "--trials", "2")) == 0
    first, second = table(tmp_path)["trials"]
    assert first["state"] == "failed" and first["reason"] == "overall of seed 0 is undefined"
    assert second["value"] == 0.5 and first["curve"] == {}


def test_a_search_without_a_finished_trial_has_status_1(shared, tmp_path, capsys):
    """Rates of this size make weights infinite."""
    space = "optimizer.learning_rate: {values: [1.0e+30]}"
    flags = arguments(shared, tmp_path, "--trials", "1", "--rounds", "3", space=space)
    assert main(flags) == 1
    assert "1 trial (1 failed); none is finished" in capsys.readouterr().out
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_what_would_end_every_trial_ends_the_search(shared, tmp_path, monkeypatch, capsys):
    """And the trial goes on when it is mended."""
    monkeypatch.setattr(
        trial_module, "complete_run", raises(DataError("x.tsv:3: no label; add it"))
    )
    flags = arguments(shared, tmp_path, "--trials", "1", "--rounds", "1")
    assert main(flags) == 2
    told = "trial 1: x.tsv:3: no label; add it; then go on with the same command"
    assert capsys.readouterr().err == f"sbrrt-fast search: {told}\n"
    assert table(tmp_path)["trials"][0]["state"] == "running"
    monkeypatch.undo()
    assert main(flags) == 0
    assert "trial 1 of 1 goes on" in capsys.readouterr().out
    assert [t["state"] for t in table(tmp_path)["trials"]] == ["finished"]


def raises(error: BaseException):
    def fails(*_):
        raise error

    return fails


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trials", "0"), "--trials: must be at least 1, got 0"),
        (("--seeds", "0"), "--seeds: must be at least 1, got 0"),
        (("--timeout", "0"), "--timeout: must be minutes above 0, got 0.0"),
        (("--timeout", "nan"), "--timeout: must be minutes above 0, got nan"),
        (
            ("--metric", "sst/f1"),
            "--metric: runs have no score 'sst/f1'; there are overall, sst/acc",
        ),
        (("--sampler", "tree"), "invalid choice 'tree'"),
        (("--resume",), "resume: a search goes on by itself with the same command"),
        (("--sampler", "grid"), "optimizer.learning_rate: a grid needs values"),
        (("--rounds", "0"), "rounds: must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(shared, tmp_path, capsys, flags, message):
    assert main(arguments(shared, tmp_path, *flags)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_mistake_of_a_space_has_a_line(shared, tmp_path, capsys):
    space = "smart.radius: {values: [-1]}\nsmart.norn: {values: [1]}\n"
    assert main(arguments(shared, tmp_path, space=space)) == 2
    lines = capsys.readouterr().err.splitlines()
    path = tmp_path / "space.yaml"
    assert [line.split(": ")[1] for line in lines] == [f"{path}:1", f"{path}:2"]


def test_a_grid_has_no_more_trials_than_combinations(shared, tmp_path, capsys):
    flags = ("--sampler", "grid", "--trials", "5")
    assert main(arguments(shared, tmp_path, *flags, space=GRID)) == 2
    assert "--trials: the grid has 4 combinations" in capsys.readouterr().err


def test_torchrun_is_refused(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert main(arguments(shared, tmp_path)) == 2
    assert "works in one process; start it without torchrun" in capsys.readouterr().err


def test_after_its_minutes_no_trial_is_begun(shared, tmp_path, capsys):
    assert main(arguments(shared, tmp_path, "--timeout", "1e-9")) == 1
    assert "0 trials (none begun); none is finished" in capsys.readouterr().out


def test_runs_that_are_scored_once_are_told(shared, tmp_path, monkeypatch, capsys):
    fake_curves(monkeypatch, [[0.5]])
    flags = ("--trials", "1", "--log.evaluate-every", "4")
    assert main(arguments(shared, tmp_path, *flags)) == 0
    assert "every run is scored once, so none is pruned" in capsys.readouterr().out
