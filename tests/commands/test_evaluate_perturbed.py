"""``sbrrt-fast evaluate --perturb``: scores on perturbed texts beside those on the texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sbrrt_fast
from sbrrt_fast.cli import main
from sbrrt_fast.commands.trained_run import RunArguments, open_run
from sbrrt_fast.data.perturb import perturb_text
from sbrrt_fast.data.perturbed import Perturbing
from sbrrt_fast.training.ranks.ranks import ONE_RANK
from sbrrt_fast.training.scores.evaluate import score_tasks
from sbrrt_fast.training.scores.perturbed import PerturbedScores, score_perturbed
from tests.helpers import train_tiny
from tests.training.ranks.threads import on_ranks

TASKS = ("sst", "para", "sts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    return train_tiny(tmp_path_factory.mktemp("perturbed"), "--tasks.sst.metrics", "mcc")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluated(run: Path, *flags: str) -> dict:
    output = run.parent / "scores.json"
    assert main(["evaluate", str(run), "--output", str(output), *flags]) == 0
    return json.loads(output.read_text())


def dev_rows(run: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluation" / f"dev-{task}.jsonl").open()]


def test_scores_are_those_of_the_perturbed_texts(run):
    flags = ("--perturb", "typos", "word_drop", "--perturb-rate", "0.4", "--perturb-seed", "5")
    record = evaluated(run, *flags)
    perturbed = record["perturbed"]
    assert (perturbed["rate"], perturbed["seed"]) == (0.4, 5)
    assert list(perturbed["scores"]) == ["typos", "word_drop"]
    model = sbrrt_fast.load(run, device="cpu")
    for name, scores in perturbed["scores"].items():
        rows = dev_rows(run, "para")
        texts = [
            tuple(
                perturb_text(text, name, rate=0.4, seed=f"5/para/dev/{row['id']}/{place}")
                for place, text in enumerate(row["texts"])
            )
            for row in rows
        ]
        labels = model.predict("para", texts).labels
        right = [label == row["label"] for label, row in zip(labels, rows, strict=True)]
        assert scores["para"]["accuracy"] == sum(right) / len(right)
        differences = perturbed["differences"][name]
        assert differences.keys() == scores.keys() == {*TASKS, "overall"}
        assert differences["sst"].keys() == {"accuracy", "mcc"}
        for task, metric in (("sst", "accuracy"), ("sst", "mcc"), ("sts", "pearson")):
            change = scores[task][metric] - record["dev"][task][metric]
            assert differences[task][metric] == change
        assert differences["overall"] == scores["overall"] - record["dev"]["overall"]
        assert all(0 < count <= 24 for count in perturbed["rows_changed"][name].values())


def test_the_rows_and_scores_of_the_split_are_unperturbed(run):
    before = {task: dev_rows(run, task) for task in TASKS}
    plain = evaluated(run)
    record = evaluated(run, "--perturb", "spaces")
    assert "perturbed" not in plain
    assert {key: record[key] for key in plain} == plain
    assert {task: dev_rows(run, task) for task in TASKS} == before
    assert evaluated(run, "--perturb", "spaces") == record


def test_the_table_has_both_scores_and_their_difference(run, capsys):
    record = evaluated(run, "--perturb", "typos", "case", "typos", "--metrics", "mse")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("perturbed texts: rate 0.1, seed 0, labels as they are")
    cells = [line.split() for line in lines[start + 2 : start + 14]]
    assert [row[:2] for row in cells[:6]] == [
        *(["typos", task] for task in ("sst", "sst", "para", "sts", "sts", "overall"))
    ]
    assert {row[0] for row in cells[6:]} == {"case"}
    before, after = (
        x["sst"]["mcc"] for x in (record["dev"], record["perturbed"]["scores"]["typos"])
    )
    changed = record["perturbed"]["rows_changed"]["typos"]["sst"]
    expected = ["typos", "sst", "mcc", f"{after:.4f}", f"{before:.4f}", f"{after - before:+.4f}"]
    assert cells[1] == [*expected, str(changed), "of", "24"]


def test_ranks_share_perturbed_rows(trained):
    def work(ranks) -> PerturbedScores:
        run = open_run(RunArguments(trained, device="cpu"), ranks)
        scored = score_tasks(run.model, run.load("dev"), **run.options)
        settings = Perturbing(("typos",), 0.3)
        arguments = run.model, run.tokenizer, scored, "typos", settings, run.max_length
        return score_perturbed(*arguments, **run.options)

    alone = work(ONE_RANK)
    assert on_ranks(2, work) == [alone] * 2 and alone.rows_changed["para"] > 12


def test_upper_case_does_nothing_to_a_tokenizer_that_lower_cases(run, capsys):
    record = evaluated(run, "--perturb", "case")
    assert set(record["perturbed"]["rows_changed"]["case"].values()) == {0}
    assert record["perturbed"]["scores"]["case"] == record["dev"]
    note = "case changes next to nothing: the model's tokenizer puts texts into lower case"
    assert capsys.readouterr().out.splitlines().count(note) == 1
    evaluated(run, "--perturb", "typos")
    assert note not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--perturb", "typo"], "'typo'"),
        (["--perturb", "typos", "--perturb-rate", "1.5"], "perturb_rate: must be from 0 to 1"),
    ],
)
def test_what_cannot_be_used_is_refused(run, flags, expected, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), *flags]) == 2
    output = capsys.readouterr()
    assert expected in output.err and output.err.count("\n") == 1 and output.out == ""
