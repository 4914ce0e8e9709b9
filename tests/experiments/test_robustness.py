"""``sbrrt-fast robustness``: finished runs on perturbed dev texts, a file for each run."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.experiments import robustness
from sbrrt_fast.experiments.robustness import finished_runs, record_path
from tests.helpers import train_tiny

RUNS = (("plain", 0), ("plain", 1), ("smart", 0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two rows, one with two seeds, as ``reproduce`` lays them out."""
    folder = tmp_path_factory.mktemp("robustness")
    for row, seed in RUNS:
        output = folder / "table2" / row / f"seed{seed}"
        weight = "1" if row == "smart" else "0"
        train_tiny(folder, "--output", str(output), "--seed", str(seed), "--smart.weight", weight)
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained / "table2", tmp_path / "table2"))


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The perturbations that are computed during the test."""
    names: list[str] = []
    original = robustness.score_perturbed

    def counted(*args, **options):
        names.append(args[3])
        return original(*args, **options)

    monkeypatch.setattr(robustness, "score_perturbed", counted)
    return names


def measured(runs: Path, *flags: str) -> dict[str, dict]:
    """What the command writes, by file."""
    output = runs.parent / "robustness"
    assert main(["robustness", str(runs), "--output", str(output), *flags]) == 0
    paths = sorted(output.rglob("*.json"))
    return {path.relative_to(output).as_posix(): json.loads(path.read_text()) for path in paths}


def refused(argv: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    return output.err


def test_a_file_has_what_evaluate_says(runs, tmp_path):
    files = measured(runs, "--perturb", "typos", "word_drop", "--perturb-rate", "0.3")
    assert list(files) == [f"{row}/seed{seed}.json" for row, seed in RUNS]
    for row, seed in RUNS:
        record = files[f"{row}/seed{seed}.json"]
        assert (record["row"], record["run_seed"], record["recipe"]) == (row, seed, "custom")
        assert record["settings"] == {"rate": 0.3, "seed": 0, "dev_rows": None}
        assert record["num_examples"] == {"sst": 24, "para": 24, "sts": 24}
        run, output = runs / row / f"seed{seed}", tmp_path / "scores.json"
        flags = ["--output", str(output), "--perturb", "typos", "word_drop"]
        assert main(["evaluate", str(run), *flags, "--perturb-rate", "0.3"]) == 0
        scores = json.loads(output.read_text())
        expected = {"clean": scores["dev"], **scores["perturbed"]["scores"]}
        assert record["scores"] == {name: flat(x) for name, x in expected.items()}
        assert record["rows_changed"] == scores["perturbed"]["rows_changed"]
        metrics = json.loads((run / "metrics.json").read_text())
        assert record["scores"]["clean"] == flat(metrics["dev"])


def flat(scores: dict) -> dict:
    tasks = {k: v for k, v in scores.items() if k != "overall"}
    metrics = {f"{task}/{m}": x for task, by_metric in tasks.items() for m, x in by_metric.items()}
    return metrics | {"overall": scores["overall"]}


def test_the_table_has_means_over_the_runs_of_a_row(runs, capsys):
    files = measured(runs, "--perturb", "typos", "case", "--perturb-rate", "1")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines[0] == ["row", "runs", "clean", "typos", "case"]
    for row, cells in zip(("plain", "smart"), lines[1:], strict=True):
        own = [record["scores"] for name, record in files.items() if name.startswith(row)]
        clean = statistics.fmean(scores["clean"]["overall"] for scores in own)
        typos = statistics.fmean(scores["typos"]["overall"] for scores in own)
        expected = [row, str(len(own)), f"{clean:.4f}", f"{typos - clean:+.4f}", "+0.0000"]
        assert cells == expected


def test_what_is_there_is_kept(runs, computed, capsys):
    first = measured(runs, "--perturb", "typos")
    assert computed == ["typos"] * 3
    assert measured(runs, "--perturb", "typos") == first
    assert computed == ["typos"] * 3
    assert capsys.readouterr().out.count("is complete, kept") == 3
    more = measured(runs, "--perturb", "typos", "spaces")
    assert computed == ["typos"] * 3 + ["spaces"] * 3
    for name, record in more.items():
        assert list(record["scores"]) == ["clean", "typos", "spaces"]
        assert record["scores"]["typos"] == first[name]["scores"]["typos"]


def test_an_interrupted_call_goes_on(runs, computed, monkeypatch):
    original = robustness.score_perturbed

    def interrupted(*args, **options):
        if len(computed) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    flags = ("--perturb", "typos", "spaces", "word_drop")
    with monkeypatch.context() as patch:
        patch.setattr(robustness, "score_perturbed", interrupted)
        output = str(runs.parent / "robustness")
        assert main(["robustness", str(runs), "--output", output, *flags]) == 130
    assert computed == ["typos", "spaces"]
    files = measured(runs, *flags)
    assert computed == ["typos", "spaces", "word_drop", *flags[1:] * 2]
    shutil.rmtree(runs.parent / "robustness")
    assert measured(runs, *flags) == files


def test_a_run_that_was_trained_anew_is_measured_anew(runs, trained, computed, capsys):
    first = measured(runs, "--perturb", "typos")
    shutil.rmtree(runs / "plain" / "seed0")
    shutil.copytree(trained / "table2" / "plain" / "seed1", runs / "plain" / "seed0")
    capsys.readouterr()
    again = measured(runs, "--perturb", "typos")
    assert capsys.readouterr().out.count("trained anew since") == 1
    assert len(computed) == 4
    assert again["plain/seed0.json"]["scores"] == first["plain/seed1.json"]["scores"]


def test_the_first_rows_alone(runs):
    files = measured(runs / "smart", "--perturb", "typos", "--dev-rows", "10")
    record = files["smart/seed0.json"]
    assert set(record["num_examples"].values()) == {10}
    assert all(0 < count <= 10 for count in record["rows_changed"]["typos"].values())


def test_runs_that_are_not_finished_are_passed_over(runs, capsys):
    (runs / "plain" / "seed1" / "metrics.json").unlink()
    assert list(measured(runs, "--perturb")) == ["plain/seed0.json", "smart/seed0.json"]
    assert f"{runs}/plain/seed1: is not finished, passed over" in capsys.readouterr().out
    message = refused(["robustness", str(runs / "plain" / "seed1")], capsys)
    assert "this run is not finished; train it to its end first" in message


def test_what_cannot_be_used_is_refused_before_anything_is_computed(runs, computed, capsys):
    measured(runs / "smart", "--perturb", "typos")
    output = ["--output", str(runs / "robustness")]
    message = refused(["robustness", str(runs), *output, "--perturb-rate", "0.2"], capsys)
    assert "smart/seed0.json: has scores with rate 0.1, now it is 0.2; choose another" in message
    (runs / "robustness" / "smart" / "seed0.json").write_text("[]")
    message = refused(["robustness", str(runs), *output], capsys)
    assert "smart/seed0.json: is not what was written there; delete it" in message
    assert computed == ["typos"]
    empty = runs / "empty"
    empty.mkdir()
    message = refused(["robustness", str(empty)], capsys)
    assert "empty: there is no finished run; give the --output of its training" in message
    message = refused(["robustness", str(runs), "--dev-rows", "0"], capsys)
    assert "--dev-rows: must be at least 1, got 0" in message
    message = refused(["robustness", str(runs), "--perturb-rate", "-1"], capsys)
    assert "perturb_rate: must be from 0 to 1, got -1.0" in message


def test_two_runs_of_one_file_are_refused(runs, capsys):
    shutil.copytree(runs / "smart", runs / "other" / "smart")
    message = refused(["robustness", str(runs), "--perturb"], capsys)
    assert "would both have the file smart/seed0.json" in message
    run = runs / "smart" / "seed0"
    assert finished_runs([run, runs / "smart"]) == [run]
    assert record_path(Path("x"), run) == Path("x/smart/seed0.json")
