"""``sbrrt-fast predict RUN --input``: texts and tables in, predictions in the same format out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sbrrt_fast import load
from sbrrt_fast.cli import main
from tests.helpers import train_tiny

TEXTS = ["a joy to watch", 'slow, and "empty"', "a film that never ends", "schön war es nicht"]
PAIRS = [("how do I cook rice?", "how is rice cooked?"), ("a cat", "a, treaty")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run whose model has names for the classes of ``para``."""
    run = train_tiny(tmp_path_factory.mktemp("predict_texts"))
    path = run / "best" / "tasks.json"
    record = json.loads(path.read_text())
    record["tasks"]["para"]["labels"] = ["other", "duplicate"]
    path.write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def model(trained):
    return load(trained)


@pytest.fixture
def predict(trained, capsys):
    """Runs the command; returns its status, what it printed, and its messages."""

    def run(*flags: str | Path) -> tuple[int, str, str]:
        status = main(["predict", str(trained), *map(str, flags)])
        return status, *capsys.readouterr()

    return run


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def shortest(values) -> list[str]:
    return [str(float(str(value))) for value in np.asarray(values, np.float32)]


def test_raw_text_has_a_line_per_row(predict, model, tmp_path):
    path = written(tmp_path / "a.txt", "\n".join(TEXTS))
    expected = model.predict("sst", TEXTS)
    assert predict("--input", path, "--task", "sst") == (
        0,
        "".join(f"{label}\n" for label in expected.labels),
        "",
    )
    _, printed, _ = predict("--input", path, "--task", "sst", "--probabilities")
    rows = [line.split("\t") for line in printed.splitlines()]
    assert [row[0] for row in rows] == list(map(str, expected.labels))
    assert [row[1:] for row in rows] == list(map(shortest, expected.probabilities))


def test_pairs_of_raw_text_have_a_tab_between_them(predict, model, tmp_path):
    path = written(tmp_path / "a.txt", "".join(f"{a}\t{b}\r\n" for a, b in PAIRS))
    _, printed, _ = predict("--input", path, "--task", "para")
    assert printed.splitlines() == model.predict("para", PAIRS).labels
    assert set(printed.splitlines()) <= {"other", "duplicate"}
    _, printed, _ = predict("--input", path, "--task", "sts")
    assert printed.splitlines() == shortest(model.predict("sts", PAIRS).values)


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_has_ids_and_named_probabilities(predict, model, tmp_path, ending, separator):
    path = tmp_path / f"a.{ending}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["other", "sentence2", "id", "sentence1"])
        writer.writerows([["x", b, f"row, {n}", a] for n, (a, b) in enumerate(PAIRS)])
    status, printed, said = predict("--input", path, "--task", "para", "--probabilities")
    rows = list(csv.DictReader(io.StringIO(printed), delimiter=separator))
    expected = model.predict("para", PAIRS)
    assert (status, said) == (0, "")
    assert [row["id"] for row in rows] == ["row, 0", "row, 1"]
    assert [row["prediction"] for row in rows] == expected.labels
    for number, name in enumerate(("other", "duplicate")):
        found = [row[f"probability_{name}"] for row in rows]
        assert found == shortest(expected.probabilities[:, number])
    assert len(rows[0]) == 4
    _, printed, _ = predict("--input", path, "--task", "para")
    assert printed.splitlines()[0] == f"id{separator}prediction"


def test_json_lines_give_json_lines(predict, model, tmp_path):
    lines = [json.dumps({"sentence": text, "id": n}) for n, text in enumerate(TEXTS, 7)]
    path = written(tmp_path / "a.jsonl", "\n\n".join(lines))
    _, printed, _ = predict("--input", path, "--task", "sst", "--probabilities")
    rows, expected = (
        [json.loads(line) for line in printed.splitlines()],
        model.predict("sst", TEXTS),
    )
    assert [row["id"] for row in rows] == ["7", "8", "9", "10"]
    assert [row["prediction"] for row in rows] == expected.labels
    for row, probabilities in zip(rows, expected.probabilities, strict=True):
        assert list(row["probabilities"]) == ["0", "1", "2", "3", "4"]
        assert np.array(list(row["probabilities"].values()), np.float32).tolist() == (
            probabilities.tolist()
        )
    _, printed, _ = predict("--input", path, "--task", "sst")
    assert json.loads(printed.splitlines()[0]).keys() == {"id", "prediction"}


def test_rows_without_ids_are_numbered_and_files_may_be_compressed(predict, tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"sentence\nx\n\ny\n"))
    _, printed, _ = predict("--input", path, "--task", "sst")
    assert [line.partition(",")[0] for line in printed.splitlines()] == ["id", "1", "2"]


def test_predictions_are_those_of_the_task_s_own_file(predict, trained, tmp_path, capsys):
    """``--input`` with the dev file, against the file in the course's format."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert main(["predict", str(run), "--split", "dev", "--model", "last"]) == 0
    course = (run / "predictions" / "sts-dev-output.csv").read_text().splitlines()[1:]
    path = trained.parent / "data" / "sts-dev.csv"
    capsys.readouterr()
    _, printed, _ = predict("--input", path, "--task", "sts", "--model", "last")
    rows = [line.split("\t") for line in printed.splitlines()[1:]]
    assert [f"{id} , {value} " for id, value in rows] == course


def test_the_order_stays_over_windows(predict, model, tmp_path, monkeypatch):
    monkeypatch.setattr("sbrrt_fast.data.texts._MOST_CHARACTERS", 300)
    texts = [" ".join(["a", "slow", "film"][: n % 3 + 1] * (n % 11 + 1)) for n in range(200)]
    path = written(tmp_path / "a.txt", "\n".join(texts) + "\n")
    _, printed, _ = predict("--input", path, "--task", "sst", "--probabilities")
    found = np.array([line.split("\t")[1:] for line in printed.splitlines()], np.float32)
    expected = [model.predict("sst", [text]).probabilities[0] for text in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_file_is_written_whole_and_messages_go_to_stderr(predict, tmp_path):
    path = written(tmp_path / "a.txt", "film " * 200 + "\na film\n")
    output = tmp_path / "new" / "b.txt"
    status, printed, said = predict("--input", path, "--task", "sst", "--output", output)
    assert (status, printed) == (0, "")
    assert said.splitlines() == [
        "cut 1 of 2 sequences to 128 tokens (model.max_length, or the encoder's positions)",
        f"{output}: 2 rows",
    ]
    assert len(output.read_text().splitlines()) == 2
    before = output.read_bytes()
    written(path, "a film\n\n")
    status, _, said = predict("--input", path, "--task", "sst", "--output", output)
    assert (status, output.read_bytes()) == (2, before)
    assert [p.name for p in output.parent.iterdir()] == ["b.txt"]
    assert f"{path}:2: the line is empty; in raw text every line is a row: remove it" in said


def test_bad_rows_of_a_table_are_left_out_when_asked(predict, tmp_path):
    path = written(tmp_path / "a.csv", 'id,sentence\na,x\nb,""\nc,y,z\nd,w\n')
    status, printed, said = predict("--input", path, "--task", "sst")
    assert (status, printed) == (2, "id,prediction\n")
    assert f"{path}:3: sentence is empty; correct the row, or pass --skip-bad-rows" in said
    status, printed, said = predict("--input", path, "--task", "sst", "--skip-bad-rows")
    assert status == 1
    assert [line[0] for line in printed.splitlines()] == ["i", "a", "d"]
    assert said.splitlines()[-1] == (
        "sbrrt-fast predict: left out 2 rows that could not be used, the first is "
        f"{path}:3: sentence is empty"
    )


def test_a_task_that_was_trained_without_bad_rows_leaves_them_out(predict, tmp_path):
    path = written(tmp_path / "a.csv", "sentence1,sentence2\nx,y\n,z\n")
    status, printed, said = predict("--input", path, "--task", "para")
    assert status == 1 and len(printed.splitlines()) == 2
    assert "left out 1 row that could not be used, the first is" in said


def test_the_only_task_needs_no_name(tmp_path, capsys):
    (tmp_path / "tasks.yaml").write_text("tasks: [sst]\n")
    run = train_tiny(tmp_path, "--config", str(tmp_path / "tasks.yaml"))
    path = written(tmp_path / "a.txt", "a film\n")
    capsys.readouterr()
    assert main(["predict", str(run / "last"), "--input", str(path)]) == 0
    assert capsys.readouterr().out in {f"{label}\n" for label in range(5)}


@pytest.mark.parametrize(
    ("name", "text", "flags", "message"),
    [
        ("a.txt", "x\n", [], "--task: name one of sst, para, sts"),
        ("a.txt", "x\n", ["--task", "sts", "--probabilities"], "predicts values, which have none"),
        ("a.txt", "x\n", ["--task", "spt"], "no task 'spt'; did you mean 'sts'?"),
        ("a.txt", "x\n", ["--task", "sst", "--split", "dev"], "--split: names task files"),
        ("a.txt", "x\n", ["--task", "sst", "--data-dir", "d"], "--data-dir: names task files"),
        ("a.txt", "x\n", ["--task", "para"], "a.txt:1: 1 texts between tabs instead of two texts"),
        ("a.txt", "x\ty\n", ["--task", "sst"], "a.txt:1: 2 texts between tabs instead of one"),
        ("a.txt", "x\ty\n\ty\n", ["--task", "para"], "a.txt:2: sentence1 is empty"),
        ("a.doc", "x\n", ["--task", "sst"], "a.doc: its ending does not say what it is; name it"),
        (
            "a.csv",
            "x,y\n1,2\n",
            ["--task", "sst"],
            "a.csv:1: no column named 'sentence' ('x', 'y')",
        ),
        ("a.csv", "sentence,sentence\n", ["--task", "sst"], "two columns named 'sentence'"),
        ("a.jsonl", "[1]\n", ["--task", "sst"], "a.jsonl:1: no JSON object"),
        ("a.jsonl", '{"sentence": 3}\n', ["--task", "sst"], "a.jsonl:1: sentence is the number 3"),
        ("a.csv", "sentence\n", ["--task", "sst"], "a.csv: there is no row to predict"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(predict, tmp_path, name, text, flags, message):
    path = written(tmp_path / name, text)
    status, _, said = predict("--input", path, *flags)
    assert status == 2 and message in said and said.count("\n") == 1


def test_a_file_that_is_not_there_and_one_s_own_input(predict, tmp_path):
    path = written(tmp_path / "a.txt", "x\n")
    assert "none.csv: no such file" in predict("--input", tmp_path / "none.csv", "--task", "sst")[2]
    said = predict("--input", path, "--task", "sst", "--output", path)[2]
    assert f"--output: {path} is the input; name another file" in said
    assert path.read_text() == "x\n"


@pytest.mark.parametrize(
    "flags",
    [["--task", "sst"], ["--output", "x"], ["--format", "csv"], ["--probabilities"]],
)
def test_flags_for_texts_need_an_input(predict, flags):
    status, _, said = predict(*flags)
    assert status == 2 and f"{flags[0]}: goes with --input FILE" in said


def piped(trained: Path, given: bytes, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sbrrt_fast.cli", "predict", str(trained), "--input", "-"]
    return subprocess.run([*command, *flags], input=given, capture_output=True)


def test_standard_input_is_text_or_what_is_named(trained, model):
    labels = model.predict("sst", TEXTS).labels
    result = piped(trained, "\n".join(TEXTS).encode(), "--task", "sst")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == list(map(str, labels))
    table = "sentence\n" + "".join(f'"{text}"\n' for text in ("a", "b,c"))
    result = piped(trained, table.encode(), "--task", "sst", "--format", "csv")
    assert result.stdout.decode().splitlines()[0] == "id,prediction"
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("given", "flags", "message"),
    [
        (b"", [], "standard input: there is no row to predict"),
        (b"a\n\xff\n", [], "standard input: not UTF-8 in line 1 or soon after"),
        (b"a\nb\0\n", [], "standard input:2: a NUL byte"),
        (b"a\n\nb", [], "standard input:2: the line is empty"),
        (b"sentence\n\xff", ["--format", "csv"], "standard input:2: not UTF-8"),
    ],
)
def test_what_is_wrong_in_standard_input_is_one_line(trained, given, flags, message):
    result = piped(trained, given, "--task", "sst", *flags)
    assert result.returncode == 2 and result.stderr.count(b"\n") == 1
    assert message in result.stderr.decode()


def test_a_reader_that_stops_early_ends_it_quietly(trained):
    command = f"'{sys.executable}' -m sbrrt_fast.cli predict '{trained}' --input - --task sst"
    script = f"yes 'a film' | head -n 20000 | {command} | head -n 3"
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ}
    )
    assert len(result.stdout.splitlines()) == 3 and result.stderr == ""
