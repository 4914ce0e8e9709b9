"""The model card of a run says what was trained on what, and how well, without naming a folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sbrrt_fast.checksums import check_directory, checksummed_directory, replace_text
from sbrrt_fast.cli import main
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import OutputError, WeightsError
from sbrrt_fast.training.cards.model_card import SAMPLE_WARNING, DevScores, model_card
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import config_file, small_sample, tiny_backbone, train_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run whose Quora dev file has a row that is left out."""
    folder = tmp_path_factory.mktemp("card")
    quora = small_sample(folder / "data") / "quora-dev.csv"
    lines = quora.read_text(encoding="utf-8").splitlines(keepends=True)
    fields = lines[3].rstrip("\n").split("\t")
    lines[3] = "\t".join([*fields[:-1], ""]) + "\n"
    quora.write_text("".join(lines), encoding="utf-8")
    return train_tiny(folder, "--log.dev-rows", "7", "--model.max-length", "12", "--recipe", "mine")


def card_of(run: Path, name: str = "best") -> ModelCard:
    return ModelCard.load(run / name / "README.md")


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    table = re.search(rf"## {heading}\n\n((?:\|.*\n)+)", text)[1]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_it_has_the_scores_of_the_model_beside_it(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["dev"]
    card = card_of(trained)
    rows = rows_of(card.text, "Scores")
    assert [row[:3] for row in rows] == [
        ["sst", "accuracy", f"{metrics['sst']['accuracy']:.4f}"],
        ["para", "accuracy", f"{metrics['para']['accuracy']:.4f}"],
        ["sts", "pearson", f"{metrics['sts']['pearson']:.4f}"],
        ["overall", "", f"{metrics['overall']:.4f}"],
    ]
    assert [row[3] for row in rows] == ["24", "23", "24", ""]  # on all rows, at the end
    results = {r.dataset_name: (r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert results["para"] == ("accuracy", metrics["para"]["accuracy"])
    assert results["sts"] == ("pearsonr", metrics["sts"]["pearson"])
    assert (card.data.library_name, card.data.model_name) == ("sentence-transformers", "mine")
    last = card_of(trained, "last").text
    assert [row[3] for row in rows_of(last, "Scores")] == ["7", "7", "7", ""]
    assert "Scored on the first 7 rows of each task." in last
    check_directory(trained / "best")


def test_it_says_what_was_left_out_and_cut(trained):
    text = card_of(trained).text
    rows = {(row[0], row[1]): row[2:] for row in rows_of(text, "Data")}
    assert rows["para", "dev"][:3] == ["quora-dev.csv", "23", "1"]
    assert rows["sst", "train"][:3] == ["ids-sst-train.csv", "24", "0"]
    assert int(rows["para", "train"][3]) > 0  # longer than 12 tokens
    assert "- para dev: quora-dev.csv: 23 rows, skipped 1 (first: quora-dev.csv:4: " in text
    assert SAMPLE_WARNING not in text


def test_its_settings_train_the_run_again(trained, tmp_path):
    text = card_of(trained).text
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    again = config_leaves(load_config(config_file(tmp_path, recipe)))
    before = config_leaves(load_config(trained / "config.yaml"))
    differing = {key for key, value in before.items() if again[key] != value}
    assert differing == {"data_dir", "model.backbone"}
    assert again["model.backbone"] == "backbone"


def test_it_names_no_folder_of_this_machine(trained):
    for name in ("best", "last"):
        assert str(trained.parent) not in (trained / name / "README.md").read_text()


def test_a_model_of_the_built_in_sample_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backbone = tiny_backbone(tmp_path / "backbone")
    flags = ["--rounds", "1", "--log.no-tensorboard", "--log.dev-rows", "5"]
    argv = ["train", "--backbone", str(backbone), "--output", str(tmp_path / "run"), *flags]
    assert main(argv) == 0
    assert card_of(tmp_path / "run").text.count(SAMPLE_WARNING) == 2  # above, and at the scores


def test_absolute_files_are_named_and_are_no_sample(trained):
    data = trained.parent / "data"
    files = {f"tasks.sst.files.{s}": str(data / f"ids-sst-{s}.csv") for s in ("train", "dev")}
    config = load_config(trained / "config.yaml", files)
    trainer = Trainer(config, log=lambda line: None)
    unscored = DevScores({"overall": None}, 1)
    sst = {"sst": replace(config.tasks["sst"], files={s: str(data / s) for s in ("train", "dev")})}
    for tasks, folder in ((config.tasks, config.data_dir), (sst, None)):
        here = replace(config, tasks=tasks, data_dir=folder)
        text = model_card(here, trainer.model, trainer.splits, unscored)
        assert str(trained.parent) not in text and SAMPLE_WARNING not in text
    assert "| sst | dev | ids-sst-dev.csv | 24 |" in text
    of_sample = replace(config, tasks={"para": config.tasks["para"]}, data_dir=None)
    assert SAMPLE_WARNING in model_card(of_sample, trainer.model, trainer.splits, unscored)


def test_undefined_scores_and_models_without_scores(trained):
    config = load_config(trained / "config.yaml")
    trainer = Trainer(config, log=lambda line: None)
    scores = {
        "sst": {"accuracy": 0.5},
        "para": {"accuracy": 0.25},
        "sts": {"pearson": None, "undefined": "all labels are 3"},
        "overall": None,
    }
    text = model_card(config, trainer.model, trainer.splits, DevScores(scores, 8))
    assert "| sts | pearson | — | 24 |" in text and "| overall |  | — |  |" in text
    assert "sts/pearson is undefined: all labels are 3" in text
    text = model_card(config, trainer.model, trainer.splits, DevScores({"overall": None}, 8))
    assert "The model after round 8, which was not scored." in text
    assert "model-index" not in text


def test_text_in_a_card_cannot_break_its_tables(trained, tmp_path):
    config = load_config(trained / "config.yaml", {"tasks.sst.files.test": "a|b`c.csv"})
    trainer = Trainer(config, log=lambda line: None)
    labels = ("bad | worse", "`good`", "c", "d", "e")
    trainer.model.tasks["sst"] = replace(config.tasks["sst"], labels=labels)
    text = model_card(config, trainer.model, trainer.splits, DevScores({"overall": None}, 1))
    row = next(line for line in text.splitlines() if line.startswith("| sst | a text"))
    assert row == r"| sst | a text | classes | bad \| worse, 'good', c, d, e |"


# The list of checksums


def test_a_file_of_a_listed_folder_is_replaced_or_nothing_is(tmp_path, monkeypatch):
    with checksummed_directory(tmp_path / "best") as new:
        (new / "deep").mkdir()
        (new / "deep" / "weights").write_text("weights")
        (new / "README.md").write_text("old")
    (tmp_path / "best" / "own.txt").write_text("mine")
    weights = (tmp_path / "best" / "deep" / "weights").stat().st_ino
    replace_text(tmp_path / "best", "README.md", "new")
    check_directory(tmp_path / "best")
    assert (tmp_path / "best" / "README.md").read_text() == "new"
    assert (tmp_path / "best" / "own.txt").read_text() == "mine"
    assert (tmp_path / "best" / "deep" / "weights").stat().st_ino == weights  # not copied
    with pytest.raises(OutputError, match=r"own\.txt: was not written by this program"):
        replace_text(tmp_path / "best", "own.txt", "theirs")
    assert (tmp_path / "best" / "own.txt").read_text() == "mine"
    monkeypatch.setattr("os.link", _no_links)
    replace_text(tmp_path / "best", "README.md", "newer")
    check_directory(tmp_path / "best")
    assert (tmp_path / "best" / "deep" / "weights").read_text() == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    (tmp_path / "best" / "checksums.json").unlink()
    with pytest.raises(WeightsError, match=r"checksums\.json: cannot be used"):
        replace_text(tmp_path / "best", "README.md", "x")


def _no_links(*_):
    raise OSError(1, "Operation not permitted")
