"""The paper's tables: every row trained, kept, resumed, and reported as it is."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from sbrrt_fast.cli import main
from sbrrt_fast.experiments.report import Report, RowResult, Spread
from sbrrt_fast.experiments.tables import TABLES, pick_rows, read_run
from sbrrt_fast.recipe_files import recipes_folder
from sbrrt_fast.training.step.step import Step
from tests.helpers import small_sample, tiny_backbone

ROWS = {
    1: ["sst-pretrain", "sst-finetune", "cfimdb-pretrain", "cfimdb-finetune"],
    2: ["round-robin", "smart", "sbrrt", "sbrrt-mtdnn", "sbrrt-paper"],
}
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
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    backbone = tiny_backbone(folder, num_layers=1, max_length=32)
    return ["--backbone", str(backbone), "--log.no-tensorboard", "--log.every", "1"]


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


def reproduce(shared: list[str], table: str, output: Path, *more: str) -> list[str]:
    return ["reproduce", "--table", table, "--output", str(output), *shared, *more]


def report_of(output: Path, table: int) -> dict:
    return json.loads((output / f"table{table}.json").read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", [1, 2])
def test_all_rows_are_trained_and_reported(tables, table):
    report = report_of(tables, table)
    assert [row["row"] for row in report["rows"]] == ROWS[table]
    assert report["is_sample"] and report["failures"] == []
    for row in report["rows"]:
        metrics = metrics_of(tables / f"table{table}" / row["row"] / "seed0")
        assert row["seeds"] == [0] and row["rounds"] == metrics["rounds"] == 2
        for task, score in row["scores"].items():
            dev = metrics["dev"][task]
            value = next(iter(dev.values())) if isinstance(dev, dict) else dev
            assert score == {"mean": value, "sd": None, "values": [value]}
        speed = metrics["rounds_per_second"]
        assert row["rounds_per_second"]["mean"] == speed > 0


def test_regulariser_columns_are_the_runs_means(tables):
    rows = {row["row"]: row for row in report_of(tables, 2)["rows"]}
    assert set(rows["round-robin"]["smart"].values()) == {None}
    for name in ("smart", "sbrrt", "sbrrt-mtdnn", "sbrrt-paper"):
        means = metrics_of(tables / "table2" / name / "seed0")["means"]
        for task in ("sst", "para", "sts"):
            assert rows[name]["smart"][task] == means[f"{task}/smart"] > 0
            assert rows[name]["gain"][task] == means[f"{task}/gain"] > 0


@pytest.mark.parametrize(
    ("row", "preset", "weight"),
    [("sbrrt", "adversarial", 1.0), ("sbrrt-mtdnn", "mtdnn", 1.0), ("sbrrt-paper", "paper", 5.0)],
)
def test_rows_are_their_variants(tables, row, preset, weight):
    run = read_run(tables / "table2" / row / "seed0")
    assert run.metrics["smart"]["preset"] == preset
    assert run.metrics["smart"]["weight"] == weight
    assert run.config.bregman.weight == 0.8 and run.config.recipe == row


def test_pretraining_leaves_the_encoder_as_it_was(tables, shared):
    start = load_file(Path(shared[1]) / "model.safetensors")
    for row, is_same in (("cfimdb-pretrain", True), ("cfimdb-finetune", False)):
        path = tables / "table1" / row / "seed0" / "last" / "model.safetensors"
        found = load_file(path)
        name = "encoder.layer.0.output.dense.weight"
        assert found[name].equal(start[name]) is is_same


def test_markdown_and_plot(tables):
    text = (tables / "table2.md").read_text(encoding="utf-8")
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")][:7]
    assert {len(line) for line in lines} == {13}
    cells = {line[1].strip(): line for line in lines[2:]}
    assert [cell.strip() for cell in cells["sbrrt"][3::2]] == [
        "0.505",
        "0.719",
        "0.567",
        "0.597",
        "1.45",
    ]
    assert {cell.strip() for cell in cells["smart"][3::2]} == {"—"}
    assert LOUD in text and "is not known to us" in text and "1 seed(s)" in text
    for table in (1, 2):
        assert (tables / f"table{table}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_nothing(tables, shared, trained, capsys):
    files = sorted(tables.glob("table2/**/*"))
    before = {path: path.stat().st_mtime_ns for path in files}
    report = report_of(tables, 2)
    assert main(reproduce(shared, "2", tables, "--rounds", "2")) == 0
    assert trained == []
    assert before == {path: path.stat().st_mtime_ns for path in sorted(tables.glob("table2/**/*"))}
    assert report_of(tables, 2) == report
    text = capsys.readouterr().out
    assert text.count("is finished, kept") == 5 and LOUD in text


def test_further_seeds_give_a_spread(shared, tmp_path, trained):
    flags = ("--rounds", "1", "--rows", "round-robin")
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    assert main(reproduce(shared, "2", tmp_path, *flags, "--seeds", "3")) == 0
    assert trained == [("round-robin", 0)] * 3
    (row,) = report_of(tmp_path, 2)["rows"]
    folders = [tmp_path / "table2" / "round-robin" / f"seed{seed}" for seed in range(3)]
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
    return output / "table2" / "sbrrt" / "seed0"


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
    runs = [uninterrupted, tmp_path / "table2" / "sbrrt" / "seed0"]
    weights = [load_file(run / "last" / "model.safetensors") for run in runs]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert metrics_of(runs[0])["means"] == metrics_of(runs[1])["means"]


def test_a_run_with_other_settings_is_not_passed_off(tables, shared, trained, capsys):
    flags = ("--rows", "smart", "--rounds", "3")
    before = report_of(tables, 2)
    path = tables / "table2" / "smart" / "seed0"
    metrics = metrics_of(path)
    assert main(reproduce(shared, "2", tables, *flags)) == 2
    text = capsys.readouterr().err
    assert f"{path} holds a run with rounds 2, now it is 3" in text
    assert "do not belong in one row" in text
    assert trained == [] and metrics_of(path) == metrics
    assert report_of(tables, 2) == before


def test_a_folder_that_is_somebody_s_own_is_refused_before_anything_is_trained(
    shared, tmp_path, trained, capsys
):
    own = tmp_path / "table2" / "sbrrt" / "seed0"
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("mine")
    assert main(reproduce(shared, "2", tmp_path, "--rounds", "1")) == 2
    assert f"{own}: is not empty and not the folder of a run" in capsys.readouterr().err
    assert trained == [] and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["notes.txt"]


def test_report_only_collects_what_is_there(shared, tmp_path, trained, capsys):
    for seed in (0, 1):
        flags = ("--rows", "smart", "--rounds", "1", "--seeds", str(seed + 1))
        assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    count = len(trained)
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 0
    assert len(trained) == count
    rows = {row["row"]: row for row in report_of(tmp_path, 2)["rows"]}
    assert rows["smart"]["seeds"] == [0, 1] and rows["sbrrt"]["seeds"] == []
    assert "rows with 0 seeds have no finished run" in capsys.readouterr().out


def test_report_only_does_not_mix_settings(shared, tmp_path, capsys):
    for rounds, folder in (("1", tmp_path), ("2", tmp_path / "other")):
        flags = ("--rows", "round-robin", "--rounds", rounds, "--seeds", rounds)
        assert main(reproduce(shared, "2", folder, *flags)) == 0
    runs = Path("table2", "round-robin")
    (tmp_path / "other" / runs / "seed1").rename(tmp_path / runs / "seed1")
    before = report_of(tmp_path, 2)
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 2
    assert "seed0 holds a run with rounds 1, in " in capsys.readouterr().err
    assert report_of(tmp_path, 2) == before


def test_a_failing_run_is_reported_and_the_others_go_on(shared, tmp_path, capsys):
    configs = tmp_path / "configs"
    configs.mkdir()
    for path in recipes_folder().glob("sst-*.yaml"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("1.0e-3", "1.0e+30") if path.stem == "sst-pretrain" else text
        (configs / path.name).write_text(text, encoding="utf-8")
    flags = ("--configs", str(configs), "--rounds", "3", "--rows", "sst-pretrain", "sst-finetune")
    assert main(reproduce(shared, "1", tmp_path, *flags, "--seeds", "2")) == 1
    rows = {row["row"]: row["seeds"] for row in report_of(tmp_path, 1)["rows"]}
    assert rows == {"sst-pretrain": [], "sst-finetune": [0, 1]}
    failures = report_of(tmp_path, 1)["failures"]
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
    assert not report_of(tmp_path, 1)["is_sample"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "sbrtt"), "--rows: table 2 has no row 'sbrtt'; did you mean 'sbrrt'?"),
        (("--rows", "xyz"), "its rows are round-robin, smart, sbrrt"),
        (("--seeds", "0"), "--seeds: must be at least 1"),
        (("--seeds", "two"), "'two'; see `sbrrt-fast reproduce --help`"),
        (("--seed", "3"), "seed: is set for each run by this command; use --seeds N"),
        (("--resume",), "resume: is set for each run"),
        (("--rounds", "0"), "rounds: must be at least 1"),
        (("--precison", "fp32"), "unknown flag '--precison'; did you mean '--precision'?"),
        (("--configs", "/nowhere"), "/nowhere/round-robin.yaml: there is no such recipe"),
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
    folder = tmp_path / "table2" / "round-robin" / "seed0"
    (folder / file).write_text('{"half')
    assert main(reproduce(shared, "2", tmp_path, "--report-only")) == 2
    assert f"{folder}: its metrics cannot be read" in capsys.readouterr().err


def fake_run(seed: int, scores: dict[str, float], backbone: str, data_dir: str | None = "data"):
    """A finished run as ``read_run`` gives it, without training."""
    dev = {task: {"accuracy": value} for task, value in scores.items()}
    metrics = {
        "dev": dev | {"overall": statistics.mean(scores.values())},
        "rounds": 10,
        "rounds_per_second": 2.0 + seed,
        "precision": "fp32",
        "backend": "auto",
        "seed": seed,
        "means": {"sst/smart": 0.25 * (seed + 1), "sst/gain": 40.0},
    }
    model = SimpleNamespace(backbone=backbone)
    config = SimpleNamespace(model=model, data_dir=data_dir, tasks=scores)
    return SimpleNamespace(folder=Path(f"seed{seed}"), config=config, metrics=metrics, curve=[])


def test_numbers_of_a_report():
    table = TABLES[2]
    runs = [
        fake_run(seed, {"sst": sst, "para": 0.7, "sts": 0.8}, "minilm")
        for seed, sst in enumerate((0.4, 0.5))
    ]
    (row,) = pick_rows(table, ["sbrrt"])
    report = Report(table, [RowResult(row, runs)])
    lines = report.text().splitlines()
    cells = next(line for line in lines if line.startswith("sbrrt")).split("  ")
    assert [cell.strip() for cell in cells if cell.strip()] == [
        "sbrrt",
        "0.450 ± 0.071",
        "0.505",
        "0.700 ± 0.000",
        "0.719",
        "0.800 ± 0.000",
        "0.567",
        "0.650 ± 0.024",
        "0.597",
        "2.50",
        "1.45",
    ]
    assert "backbone minilm" in report.title
    assert "all-MiniLM-L6-v2 saw Quora" in report.text()
    assert "2 seed(s)" in report.text() and LOUD not in report.text()
    assert report.to_dict()["rows"][0]["smart"] == {"sst": 0.375, "para": None, "sts": None}


def test_exposure_is_told_of_minilm_alone():
    (row,) = pick_rows(TABLES[2], ["round-robin"])
    runs = [fake_run(0, {"sst": 0.4, "para": 0.7, "sts": 0.8}, "bert-base-uncased")]
    assert "MiniLM" not in Report(TABLES[2], [RowResult(row, runs)]).text()


@pytest.mark.parametrize(
    ("values", "text"), [((0.5,), "0.500 ± —"), ((0.25, 0.75, 0.5), "0.500 ± 0.250")]
)
def test_spread(values, text):
    assert f"{Spread(values):.3f}" == text
