"""Two finished runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.experiments.finished import FinishedComparison, compare_finished
from tests.helpers import read_log, train_tiny

A = ("--rounds", "6", "--log.evaluate-every", "2", "--smart.weight", "1")
B = ("--rounds", "5", "--log.evaluate-every", "4", "--seed", "2", "--tasks.sst.weight", "0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    for name, flags in (("a", A), ("b", B)):
        train_tiny(folder, *flags, "--output", str(folder / name))
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def found(runs) -> FinishedComparison:
    return compare_finished(*runs)


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def copied(run: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run with other values in its metrics.json."""
    copy = Path(shutil.copytree(run, folder / "copy"))
    (copy / "metrics.json").write_text(json.dumps(metrics(run) | changes))
    return copy


def test_settings_that_differ_are_those_that_were_given(found):
    assert found.settings == {
        "rounds": (6, 5),
        "seed": (0, 2),
        "smart.weight": (1.0, 0.0),
        "log.evaluate_every": (2, 4),
        "tasks.sst.weight": (1.0, 0.5),
    }


def test_scores_and_their_differences_are_the_runs(runs, found):
    dev = [metrics(run)["dev"] for run in runs]
    assert found.scores["sst/accuracy"] == tuple(scores["sst"]["accuracy"] for scores in dev)
    assert found.scores["overall"] == tuple(scores["overall"] for scores in dev)
    change = dev[1]["overall"] - dev[0]["overall"]
    row = next(line for line in found.text().splitlines() if line.startswith("  overall "))
    assert row.split()[3] == f"{change:+.4f}"


def test_curves_and_terms_are_those_of_the_logs(runs, found):
    for side, run in enumerate(runs):
        logged = [(r["round"], r["dev/overall"]) for r in read_log(run) if "dev/overall" in r]
        assert found.curves["overall"][side] == logged and len(logged) >= 2
        losses = [(r["round"], r["sst/loss"]) for r in read_log(run) if "sst/loss" in r]
        assert found.losses["sst/loss"][side] == losses
        assert found.means["sst/loss"][side] == metrics(run)["means"]["sst/loss"]
    assert found.means["sst/smart"][1] is None
    assert found.counts["rounds"] == (6, 5)


def test_the_same_run_twice_differs_in_nothing(runs):
    found = compare_finished(runs[0], runs[0])
    assert found.settings == {} and "no setting differs" in found.text()
    assert "+0.0000" in found.text() and "may not be the same" not in found.text()


def test_intervals_are_shown_where_there_are_any(runs, tmp_path):
    without = copied(runs[0], tmp_path / "without", intervals={})
    other = copied(runs[1], tmp_path / "with", intervals={"sst": {"accuracy": [0.125, 0.375]}})
    text = compare_finished(without, other).text()
    assert "95% of b" in text and "0.1250 to 0.3750" in text
    assert "95%" not in compare_finished(without, without).text()


def test_an_undefined_score_is_a_dash(runs, tmp_path):
    dev = metrics(runs[1])["dev"] | {"sts": {"pearson": None, "undefined": "x"}, "overall": None}
    found = compare_finished(runs[0], copied(runs[1], tmp_path, dev=dev))
    assert found.scores["sts/pearson"][1] is None
    row = next(line for line in found.text().splitlines() if line.startswith("  sts/pearson "))
    assert row.split()[2:4] == ["—", "—"]


def test_other_tasks_are_told_as_such(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    single = train_tiny(folder, "--rounds", "2", "--config", config_of(folder))
    found = compare_finished(runs[0], single)
    assert found.settings["tasks"] == ("para, sst, sts", "sst")
    assert not any(key.startswith(("tasks.para", "tasks.sts")) for key in found.settings)
    assert found.scores["sts/pearson"][1] is None
    assert "the dev rows may not be the same: data_dir" in found.text()


def config_of(folder: Path) -> str:
    (folder / "one.yaml").write_text("tasks: [sst]\n")
    return str(folder / "one.yaml")


def test_the_command_writes_json_and_a_plot(runs, tmp_path, capsys):
    output = tmp_path / "deep" / "both.json"
    assert main(["compare", *map(str, runs), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"a = {runs[0]}\nb = {runs[1]}\n")
    assert json.loads(output.read_text())["settings"]["seed"] == [0, 2]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), "this run is not finished; go on with"),
        (lambda run: (run / "run.json").unlink(), "is not the folder of a run"),
        (lambda run: (run / "metrics.jsonl").write_text("{"), "its metrics cannot be read"),
        (lambda run: (run / "config.yaml").write_text("sed: 1"), "unknown key 'sed'"),
    ],
)
def test_what_is_no_finished_run_is_one_line(runs, tmp_path, capsys, change, message):
    broken = Path(shutil.copytree(runs[1], tmp_path / "broken"))
    change(broken)
    assert main(["compare", str(runs[0]), str(broken)]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{a}",), "see `sbrrt-fast compare --help`"),
        (("{a}", "{b}", "{a}"), "see `sbrrt-fast compare --help`"),
        (("{a}", "{b}", "--ulp"), "--ulp"),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(runs, capsys, arguments, message):
    argv = [text.format(a=runs[0], b=runs[1]) for text in arguments]
    assert main(["compare", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
