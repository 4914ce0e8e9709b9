"""``load`` and what a loaded model says of texts."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbrrt_fast import TaskConfig, load
from sbrrt_fast.data.load import load_task
from sbrrt_fast.data.texts import text_examples, windows
from sbrrt_fast.errors import ConfigError, DataError, SbrrtError, WeightsError
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.training.scores.evaluate import predict
from tests.api.conftest import TASKS

SINGLE = TaskConfig(files={}, text_columns=("text",), label_column="label", head="binary")
WORDS = ("a", "slow", "funny", "warm", "film", "that", "never", "ends")


@pytest.fixture(scope="module")
def model(trained):
    return load(trained)


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 40 words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 41))) for _ in range(count)]


def inputs_of(task: TaskConfig, count: int) -> list:
    texts = texts_of(count)
    return list(zip(texts, reversed(texts), strict=True)) if task.is_pair else texts


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_predicted_as_a_file_s_rows(model, trained, name):
    """The dev file's texts, given from Python, against the evaluation of the file."""
    weights, tokenizer = load_model(trained / "best")
    rows = load_task(name, TASKS[name], "dev", trained.parent / "data", tokenizer, 128)
    lines = (trained.parent / "data" / TASKS[name].files["dev"]).read_text().splitlines()
    columns = [lines[0].split("\t").index(column) for column in TASKS[name].text_columns]
    cells = [line.split("\t") for line in lines[1:]]
    texts = [tuple(row[c] for c in columns) for row in cells]
    expected = predict(weights, rows)
    found = model.predict(name, texts if TASKS[name].is_pair else [t for (t,) in texts])
    assert len(found) == rows.num_examples == 24
    assert found.values.tolist() == expected.tolist()


def test_labels_classes_and_probabilities_belong_together(model):
    found = model.predict("sst", texts_of(30))
    assert found.classes == (0, 1, 2, 3, 4) == model.classes("sst")
    assert found.probabilities.shape == (30, 5) and found.probabilities.dtype == np.float32
    assert found.probabilities.sum(1) == pytest.approx(1.0, abs=1e-6)
    assert found.labels == found.probabilities.argmax(1).tolist() == found.values.tolist()
    for row, label in zip(found, found.labels, strict=True):
        assert max(row.probabilities, key=row.probabilities.get) == label == row.label


def test_a_binary_task_has_two_classes(model):
    found = model.predict("para", inputs_of(TASKS["para"], 20))
    assert found.classes == (0, 1) and found.probabilities.shape == (20, 2)
    assert found.labels == (found.probabilities[:, 1] > 0.5).astype(int).tolist()


@pytest.mark.parametrize("name", ["sts", "value"])
def test_values_are_labels_in_their_own_unit(model, name):
    found = model.predict(name, inputs_of(TASKS[name], 10))
    assert found.probabilities is None and found.classes == ()
    assert found.labels == [float(value) for value in found.values]
    assert [row.probabilities for row in found] == [None] * 10


def test_classes_have_the_names_that_the_model_was_saved_with(trained, tmp_path):
    folder = shutil.copytree(trained / "best", tmp_path / "named")
    record = json.loads((folder / "tasks.json").read_text())
    record["tasks"]["para"]["labels"] = ["other", "duplicate"]
    (folder / "tasks.json").write_text(json.dumps(record))
    pairs = inputs_of(TASKS["para"], 9)
    found = load(folder).predict("para", pairs)
    assert found.classes == ("other", "duplicate")
    assert found.labels == [found.classes[int(value)] for value in found.values]
    assert next(iter(found)).probabilities.keys() == {"other", "duplicate"}


@pytest.mark.parametrize("name", ["sst", "para", "cross"])
def test_neither_windows_nor_company_change_a_prediction(model, name):
    """Up to the rounding of products over other batches."""
    inputs = inputs_of(TASKS[name], 50)
    whole = model.predict(name, inputs)
    parts = list(model.predict_windows(name, iter(inputs), num_rows=7))
    alone = [model.predict(name, [row]) for row in inputs]
    assert [len(part) for part in parts] == [7] * 7 + [1]
    for some in (parts, alone):
        together = np.concatenate([part.probabilities for part in some])
        np.testing.assert_allclose(together, whole.probabilities, rtol=1e-5, atol=1e-6)


def test_a_generator_is_read_no_further_than_a_window(model):
    taken = itertools.count()
    texts = (f"a slow film {next(taken)}" for _ in iter(int, 1))  # without end
    for part in itertools.islice(model.predict_windows("sst", texts, num_rows=16), 3):
        assert len(part) == 16
    assert next(taken) == 48


def test_very_long_texts_make_short_windows():
    examples = text_examples(["a" * 1_500_000] * 7, SINGLE, "x")
    assert [len(window) for window in windows(examples)] == [3, 3, 1]


def test_long_texts_are_cut_and_counted(model):
    found = model.predict("sst", ["film " * 127, "film " * 126, "film"])
    assert model.max_length == 128
    assert (found.num_sequences, found.num_truncated) == (3, 1)
    cut = model.predict("sst", ["film " * 126 + "never"])
    np.testing.assert_allclose(found.probabilities[0], cut.probabilities[0], rtol=1e-5)
    pairs = model.predict("para", [("film " * 200, "film"), ("film", "a")])
    assert (pairs.num_sequences, pairs.num_truncated) == (4, 1)


@pytest.mark.parametrize("name", TASKS)
def test_no_text_has_no_prediction(model, name):
    found = model.predict(name, [])
    assert len(found) == 0 and found.labels == [] and list(found) == []
    assert found.classes == model.classes(name)
    assert (found.probabilities is None) == TASKS[name].is_regression


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("sst", "a film", "texts: 'a film' is one text; give a list or another iterable"),
        (
            "sst",
            ["a", " \t"],
            "texts, row 2: a text has no visible character; leave the row out",
        ),
        ("sst", [("a", "b")], "row 1: the task takes one text a row, got ('a', 'b') ('sst')"),
        ("sst", [3], "row 1: the task takes one text a row, of type str, got 3"),
        ("sst", ["\ud800"], "half of a surrogate pair"),
        ("para", ["ab"], "row 1: the task takes a pair of texts a row, got 'ab' ('para')"),
        ("para", ("a", "b"), "row 1: the task takes a pair of texts a row, got 'a'"),
        ("para", [("a", None)], "a pair of texts a row, of type str, got ('a', None)"),
        ("para", [("a", "")], "row 1: a text has no visible"),
    ],
)
def test_what_is_no_text_is_named_by_its_row(model, name, texts, message):
    with pytest.raises(DataError) as caught:
        model.predict(name, texts)
    assert message in str(caught.value)


def test_an_unknown_task_is_named_before_any_text_is_read(model):
    with pytest.raises(ConfigError, match="no task 'spt'; did you mean 'sts'"):
        model.predict_windows("spt", iter(["a"]))
    with pytest.raises(ConfigError, match="it has sst, para, sts, cross, value"):
        model.predict("zzzzz", ["a"])


def test_vectors_are_what_the_pooling_makes_of_texts(model, trained):
    texts = texts_of(20)
    weights, tokenizer = load_model(trained / "best")
    vectors = model.embed(iter(texts))
    assert vectors.shape == (20, 32) and vectors.dtype == np.float32
    with torch.no_grad():
        for text, vector in zip(texts, vectors, strict=True):
            ids = torch.tensor([tokenizer.encode(text).ids])
            hidden = reference_hidden(weights.encoder, ids)
            np.testing.assert_allclose(vector, hidden.mean(0), rtol=1e-4, atol=1e-5)
    unit = model.embed(texts, normalize=True)
    np.testing.assert_allclose((unit**2).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(unit * np.linalg.norm(vectors, axis=1)[:, None], vectors, rtol=1e-5)
    assert model.embed([]).shape == (0, 32)


def reference_hidden(encoder, ids):
    """The last layer's states [num_tokens, hidden] of one text, by the padded layout."""
    from sbrrt_fast.data.batch import TokenBatch

    batch = TokenBatch.from_padded(ids, torch.ones_like(ids), torch.zeros_like(ids))
    return encoder.encode(encoder.embed(batch), batch)


def test_bf16_products_are_near_those_of_fp32(trained):
    model = load(trained, precision="bf16")
    assert model.precision == "bf16" and load(trained).precision == "fp32"
    texts = texts_of(30)
    ours, exact = model.predict("sst", texts), load(trained).predict("sst", texts)
    np.testing.assert_allclose(ours.probabilities, exact.probabilities, atol=0.02)


def test_a_model_s_own_folder_loads_as_from_its_run(trained, tmp_path):
    texts, expected = texts_of(5), load(trained, which="last").predict("sst", texts_of(5))
    copy = shutil.copytree(trained / "last", tmp_path / "elsewhere")
    for folder in (trained / "last", str(copy)):
        np.testing.assert_array_equal(
            load(folder).predict("sst", texts).probabilities, expected.probabilities
        )


def test_the_limit_and_layout_are_those_of_the_run(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    text = text.replace("max_length: 512", "max_length: 9").replace("packed", "padded")
    (run / "config.yaml").write_text(text)
    for place in (run, run / "best"):
        model = load(place)
        assert model.max_length == 9
        assert model.predict("sst", ["film " * 8, "film"]).num_truncated == 1
    assert load(shutil.copytree(run / "best", tmp_path / "alone")).max_length == 128


def test_a_folder_without_a_model_is_one_line(trained, tmp_path):
    with pytest.raises(WeightsError, match=r"is not the folder of a run, it has no config.yaml"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="which: must be 'best' or 'last', got 'first'"):
        load(trained, which="first")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(trained):
    with pytest.raises(SbrrtError, match="'cuda' is not available"):
        load(trained, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_predicts_as_the_cpu(trained):
    texts = texts_of(30)
    ours, theirs = (load(trained, device=device) for device in ("auto", "cpu"))
    assert (ours.device.type, theirs.device.type) == ("cuda", "cpu")
    np.testing.assert_allclose(
        ours.predict("sst", texts).probabilities,
        theirs.predict("sst", texts).probabilities,
        atol=1e-4,
    )


def test_outputs_that_are_not_finite_are_an_error(trained, tmp_path):
    """Weights that are finite, and too large for their products."""
    weights, tokenizer = load_model(trained / "best")
    weights.heads["sst"].classifier.weight.data.fill_(3e38)
    folder = tmp_path / "large"
    folder.mkdir()
    save_model(weights, folder, tokenizer)
    with pytest.raises(WeightsError, match="outputs are nan or infinite"):
        load(folder).predict("sst", ["a film"])


def test_records_are_those_of_the_run(model):
    assert model.tasks == {name: replace(task) for name, task in TASKS.items()}
