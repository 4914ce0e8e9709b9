"""The paper's tables: every row trained, kept, resumed, and reported as it is."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sbrrt_fast.cli import main
from sbrrt_fast.experiments.record import read_record
from sbrrt_fast.experiments.table_rows import TABLES
from sbrrt_fast.experiments.tables import claimed, read_run
from sbrrt_fast.recipe_files import recipes_folder
from sbrrt_fast.training.step.step import Step
from tests.commands.reproduced import metrics_of, quick_flags, report_of, reproduce
from tests.helpers import small_sample

ROWS = {name: [row.name for row in table.rows] for name, table in TABLES.items()}
LOUD = "THESE NUMBERS MEAN NOTHING"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """The built-in sample is written to a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> list[str]:
    """Flags of quick runs."""
    return quick_flags(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def tables(shared, tmp_path_factory) -> Path:
    """Both tables on the built-in sample, every row for two rounds."""
    output = tmp_path_factory.mktemp("tables")
    for table in ("1", "2"):
        assert main(reproduce(shared, table, output, "--rounds", "2")) == 0
    return output


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """(recipe, round index) of every round trained during the test."""
    rounds: list[tuple[str, int]] = []
    original = Step.round_of

    def counted(self, works, index, report=False):
        rounds.append((self.config.recipe, index))
        return original(self, works, index, report)

    monkeypatch.setattr(Step, "round_of", counted)
    return rounds


@pytest.mark.parametrize("table", ["1", "2"])
def test_all_rows_are_trained_and_reported(tables, table):
    report = report_of(tables, table)
    assert [row["row"] for row in report["rows"]] == ROWS[table]
    assert report["is_sample"] and report["failures"] == []
    for row in report["rows"]:
        metrics = metrics_of(tables / row["row"] / "seed0")
        assert row["seeds"] == [0] and row["rounds"] == metrics["rounds"] == 2
        for task, score in row["scores"].items():
            dev = metrics["dev"][task]
            value = next(iter(dev.values())) if isinstance(dev, dict) else dev
            assert score == {"mean": value, "sd": None, "values": [value]}
        machine = metrics["environment"]
        is_alone = machine["other_cores"] <= 0.05 * machine["cores"]
        speed = row["rounds_per_second"]
        assert (speed and speed["mean"]) == (metrics["rounds_per_second"] if is_alone else None)


def test_regulariser_columns_are_the_runs_means(tables):
    rows = {row["row"]: row for row in report_of(tables, "2")["rows"]}
    for name in ("round-robin", "round-robin-teacher", "round-robin-paper", "sst-finetune"):
        assert set(rows[name]["smart"].values()) == {None}
    means = metrics_of(tables / "smart" / "seed0")["means"]
    assert rows["smart"]["smart"] == {"sst": means["sst/smart"], "para": None, "sts": None}
    for name in ("round-robin-smart", "sbrrt", "sbrrt-mtdnn", "sbrrt-paper"):
        means = metrics_of(tables / name / "seed0")["means"]
        for task in ("sst", "para", "sts"):
            assert rows[name]["smart"][task] == means[f"{task}/smart"] > 0
            assert rows[name]["gain"][task] == means[f"{task}/gain"] > 0


@pytest.mark.parametrize(
    ("row", "preset", "weight"),
    [("sbrrt", "adversarial", 1.0), ("sbrrt-mtdnn", "mtdnn", 1.0), ("sbrrt-paper", "paper", 5.0)],
)
def test_rows_are_their_variants(tables, row, preset, weight):
    run = read_run(tables / row / "seed0")
    assert run.metrics["smart"]["preset"] == preset
    assert run.metrics["smart"]["weight"] == weight
    assert run.config.bregman.weight == 0.8 and run.config.recipe == row


def test_pretraining_leaves_the_encoder_as_it_was(tables, shared):
    start = load_file(Path(shared[1]) / "model.safetensors")
    for row, is_same in (("cfimdb-pretrain", True), ("cfimdb-finetune", False)):
        path = tables / row / "seed0" / "last" / "model.safetensors"
        found = load_file(path)
        name = "encoder.layer.0.output.dense.weight"
        assert found[name].equal(start[name]) is is_same


def test_markdown_and_plot(tables):
    text = (tables / "table-2.md").read_text(encoding="utf-8")
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    lines = lines[: len(ROWS["2"]) + 2]
    assert {len(line) for line in lines} == {11}
    cells = {line[1].strip(): [c.strip() for c in line[3::2]] for line in lines[2:]}
    assert cells["sbrrt"] == ["0.505", "0.719", "0.567", "0.597"]
    assert cells["smart"] == cells["smart-paper"] == ["0.518", "0.371", "0.307", "0.399"]
    assert set(cells["sbrrt-mtdnn"]) == {"—"}
    assert LOUD in text and "the paper has no such value" in text and "1 seed(s)" in text
    for table in ("1", "2"):
        assert (tables / f"table-{table}.png").read_bytes().startswith(b"\x89PNG")


def test_rows_in_both_tables_are_trained_once(tables):
    shared = set(ROWS["1"]) & set(ROWS["2"])
    assert shared == {
        f"sst-{mode}{of}" for mode in ("pretrain", "finetune") for of in ("", "-paper")
    }
    rows = [{row["row"]: row for row in report_of(tables, t)["rows"]} for t in ("1", "2")]
    for name in shared:
        assert rows[0][name]["scores"] == rows[1][name]["scores"]


def test_single_task_rows_train_sst_alone(tables):
    for name in ("sst-pretrain", "sst-finetune-paper", "smart", "smart-paper"):
        metrics = metrics_of(tables / name / "seed0")
        assert set(metrics["dev"]) == {"sst", "para", "sts", "overall"}
        assert {key.split("/")[0] for key in metrics["means"] if key.endswith("/loss")} == {"sst"}


def test_a_record_is_kept_of_every_run(tables):
    for name in {*ROWS["1"], *ROWS["2"]}:
        record = read_record(tables / "metrics" / name / "seed0.json")
        metrics = metrics_of(tables / name / "seed0")
        assert record.row == name and record.seed == 0 and record.rounds == 2
        assert record.rounds_per_second == metrics["rounds_per_second"]
        assert record.scores["overall"] == metrics["dev"]["overall"]
        assert f"--rows {name} --seeds 1 " in record.command
        assert "--backbone tiny" in record.command and str(tables) not in record.command


def test_a_second_call_trains_nothing(tables, shared, trained, capsys):
    files = sorted(tables.glob("*/seed0/**/*"))
    before = {path: path.stat().st_mtime_ns for path in files}
    report = report_of(tables, "2")
    assert main(reproduce(shared, "2", tables, "--rounds", "2")) == 0
    assert trained == []
    assert before == {path: path.stat().st_mtime_ns for path in sorted(tables.glob("*/seed0/**/*"))}
    assert report_of(tables, "2") == report
    text = capsys.readouterr().out
    assert text.count("is finished, kept") == len(ROWS["2"]) and LOUD in text


def test_further_seeds_give_a_spread(shared, tmp_path, trained):
    flags = ("--rounds", "1", "--rows", "round-robin")
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    assert main(reproduce(shared, "2", tmp_path, *flags, "--seeds", "3")) == 0
    assert trained == [("round-robin", 0)] * 3
    (row,) = report_of(tmp_path, "2")["rows"]
    folders = [tmp_path / "round-robin" / f"seed{seed}" for seed in range(3)]
    values = [metrics_of(folder)["dev"]["overall"] for folder in folders]
    assert row["seeds"] == [0, 1, 2] and len(set(values)) == 3
    assert row["scores"]["overall"]["mean"] == pytest.approx(statistics.mean(values))
    assert row["scores"]["overall"]["sd"] == pytest.approx(statistics.stdev(values))


def interrupt_at(monkeypatch, last: int) -> None:
    """Ctrl-C when round ``last`` (from 0) begins."""
    original = Step.round_of

    def interrupted(self, works, index, report=False):
        if index == last:
            raise KeyboardInterrupt
        return original(self, works, index, report)

    monkeypatch.setattr(Step, "round_of", interrupted)


@pytest.fixture(scope="module")
def uninterrupted(shared, tmp_path_factory) -> Path:
    """Folder of an SBRRT run of four rounds."""
    output = tmp_path_factory.mktemp("whole")
    assert main(reproduce(shared, "2", output, "--rounds", "4", "--rows", "sbrrt")) == 0
    return output / "sbrrt" / "seed0"


@pytest.mark.parametrize(("state_every", "first"), [("2", 2), ("0", 0)])
def test_an_interrupted_row_goes_on(
    shared, uninterrupted, tmp_path, monkeypatch, capsys, state_every, first
):
    """From its state where it has one, else from the start; to the same end either way."""
    flags = ("--rounds", "4", "--rows", "sbrrt", "--log.state-every", state_every)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert main(reproduce(shared, "2", tmp_path, *flags)) == 130
    assert not list(tmp_path.glob("**/metrics.json"))
    rounds: list[int] = []
    original = Step.round_of
    monkeypatch.setattr(
        Step, "round_of", lambda self, b, i, r=False: rounds.append(i) or original(self, b, i, r)
    )
    capsys.readouterr()
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    assert "was interrupted" in capsys.readouterr().out
    assert rounds == list(range(first, 4))
    runs = [uninterrupted, tmp_path / "sbrrt" / "seed0"]
    weights = [load_file(run / "last" / "model.safetensors") for run in runs]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert metrics_of(runs[0])["means"] == metrics_of(runs[1])["means"]


def test_a_run_with_other_settings_is_not_passed_off(tables, shared, trained, capsys):
    flags = ("--rows", "smart", "--rounds", "3")
    before = report_of(tables, "2")
    path = tables / "smart" / "seed0"
    metrics = metrics_of(path)
    assert main(reproduce(shared, "2", tables, *flags)) == 2
    text = capsys.readouterr().err
    assert f"{path} holds a run with rounds 2, now it is 3" in text
    assert "do not belong in one row" in text
    assert trained == [] and metrics_of(path) == metrics
    assert report_of(tables, "2") == before


def test_a_folder_that_is_somebody_s_own_is_refused_before_anything_is_trained(
    shared, tmp_path, trained, capsys
):
    own = tmp_path / "sbrrt" / "seed0"
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("mine")
    assert main(reproduce(shared, "2", tmp_path, "--rounds", "1")) == 2
    assert f"{own}: is not empty and not the folder of a run" in capsys.readouterr().err
    assert trained == [] and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["notes.txt"]


def test_what_another_process_trains_is_passed_over(shared, tmp_path, trained, capsys):
    flags = ("--rows", "smart", "round-robin", "--rounds", "1")
    with claimed(tmp_path / "smart" / "seed0") as is_ours:
        assert is_ours
        assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    assert trained == [("round-robin", 0)]
    assert "smart/seed0: another process trains it, passed over" in capsys.readouterr().out
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    assert trained == [("round-robin", 0), ("smart", 0)]


def test_seeds_of_all_rows_come_before_further_seeds(shared, tmp_path, capsys):
    flags = ("--rows", "smart", "round-robin", "--rounds", "1", "--seeds", "2")
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": training")]
    runs = [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in lines]
    assert runs == ["smart/seed0", "round-robin/seed0", "smart/seed1", "round-robin/seed1"]
    rows = {row["row"]: row for row in report_of(tmp_path, "2")["rows"]}
    scores = [rows[name]["scores"]["overall"]["values"] for name in ("smart", "round-robin")]
    difference = rows["smart"]["differences"]["overall"]
    assert difference["num_pairs"] == 2
    differences = [a - b for a, b in zip(*scores, strict=True)]
    assert difference["mean"] == pytest.approx(statistics.mean(differences))


def test_report_only_collects_what_is_there(shared, tmp_path, trained, capsys):
    for seed in (0, 1):
        flags = ("--rows", "smart", "--rounds", "1", "--seeds", str(seed + 1))
        assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    count = len(trained)
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 0
    assert len(trained) == count
    rows = {row["row"]: row for row in report_of(tmp_path, "2")["rows"]}
    assert rows["smart"]["seeds"] == [0, 1] and rows["sbrrt"]["seeds"] == []
    assert "rows with 0 seeds have no finished run" in capsys.readouterr().out


def test_report_only_does_not_mix_settings(shared, tmp_path, capsys):
    for rounds, folder in (("1", tmp_path), ("2", tmp_path / "other")):
        flags = ("--rows", "round-robin", "--rounds", rounds, "--seeds", rounds)
        assert main(reproduce(shared, "2", folder, *flags)) == 0
    runs = Path("round-robin")
    (tmp_path / "other" / runs / "seed1").rename(tmp_path / runs / "seed1")
    before = report_of(tmp_path, "2")
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 2
    assert "seed0 holds a run with rounds 1, in " in capsys.readouterr().err
    assert report_of(tmp_path, "2") == before


def test_a_failing_run_is_reported_and_the_others_go_on(shared, tmp_path, capsys):
    configs = tmp_path / "configs"
    configs.mkdir()
    for path in recipes_folder().glob("sst-*.yaml"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("3.0e-3", "1.0e+30") if path.stem == "sst-pretrain" else text
        (configs / path.name).write_text(text, encoding="utf-8")
    flags = ("--configs", str(configs), "--rounds", "3", "--rows", "sst-pretrain", "sst-finetune")
    assert main(reproduce(shared, "1", tmp_path, *flags, "--seeds", "2")) == 1
    rows = {row["row"]: row["seeds"] for row in report_of(tmp_path, "1")["rows"]}
    assert rows == {"sst-pretrain": [], "sst-finetune": [0, 1]}
    failures = report_of(tmp_path, "1")["failures"]
    assert [failure.partition(":")[0] for failure in failures] == [
        "sst-pretrain, seed 0",
        "sst-pretrain, seed 1",
    ]
    assert "so training cannot go on" in failures[0]
    assert failures[0] in capsys.readouterr().out


def test_task_files_of_ones_own_are_not_called_a_sample(shared, tmp_path, capsys, monkeypatch):
    data = small_sample(tmp_path / "data")
    flags = ("--rows", "sst-finetune", "--rounds", "1", "--data-dir", str(data))
    assert main(reproduce(shared, "1", tmp_path, *flags)) == 0
    assert LOUD not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)  # the same folder by another name
    flags = (*flags[:-1], data.name)
    assert main(reproduce(shared, "1", tmp_path, *flags)) == 0
    assert "is finished, kept" in capsys.readouterr().out
    assert not report_of(tmp_path, "1")["is_sample"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "sbrtt"), "--rows: table 2 has no row 'sbrtt'; did you mean 'sbrrt'?"),
        (("--rows", "xyz"), "its rows are sst-pretrain, sst-finetune, smart"),
        (("--seeds", "0"), "--seeds: must be at least 1"),
        (("--seeds", "two"), "'two'; see `sbrrt-fast reproduce --help`"),
        (("--seed", "3"), "seed: is set for each run by this command; use --seeds N"),
        (("--resume",), "resume: is set for each run"),
        (("--rounds", "0"), "rounds: must be at least 1"),
        (("--precison", "fp32"), "unknown flag '--precison'; did you mean '--precision'?"),
        (("--records", "/nowhere"), "--records: /nowhere has no ROW/seedN.json; name the metrics"),
        (("--configs", "/nowhere"), "/nowhere/sst-pretrain.yaml: there is no such recipe"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    shared, tmp_path, trained, capsys, arguments, message
):
    assert main(reproduce(shared, "2", tmp_path, *arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert trained == [] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["metrics.json", "metrics.jsonl"])
def test_a_damaged_run_is_named(shared, tmp_path, capsys, file):
    flags = ("--rows", "round-robin", "--rounds", "1")
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    folder = tmp_path / "round-robin" / "seed0"
    (folder / file).write_text('{"half')
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 2
    assert f"{folder}: its metrics cannot be read" in capsys.readouterr().err
