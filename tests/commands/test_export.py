"""``sbrrt-fast export``: what onnxruntime computes is what the model predicts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sbrrt_fast.checksums import check_directory
from sbrrt_fast.cli import main
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example
from sbrrt_fast.model import onnx_check, onnx_graphs
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.heads import probabilities
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.cards.usage import FOLDER
from sbrrt_fast.training.scores.evaluate import predict_outputs, predictions_of
from tests.all_tasks import TASKS
from tests.helpers import tiny_backbone, tiny_tokenizer
from tests.model.models import randomise

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MAX_LENGTH = 24
FEW = ("sst", "para")
TEXTS = ["A quiet film.", "No!", "The violin is hard to play", "words without an end " * 20, "a b"]


def saved_model(
    folder: Path, pooling: str, names=FEW, pair_features: str = "concat_difference"
) -> Path:
    """A model folder with random weights, of a run with ``max_length`` 24."""
    encoder = MiniBert.from_folder(tiny_backbone(folder / "backbone", pooling=pooling))
    model = MultiTaskModel(encoder, {name: TASKS[name] for name in names}, pair_features)
    randomise(model.heads)
    (folder / "best").mkdir()
    save_model(model, folder / "best", tiny_tokenizer(), max_length=MAX_LENGTH)
    return folder / "best"


def export(model: Path, folder: Path, capsys) -> str:
    capsys.readouterr()
    assert main(["export", str(model), "--onnx", str(folder)]) == 0
    return capsys.readouterr().out


def rows_of(name: str, texts: list[str]) -> TokenizedTask:
    task = TASKS[name]
    pairs = zip(texts, reversed(texts), strict=True)
    given = list(pairs) if task.is_pair else [(text,) for text in texts]
    examples = [Example(str(i), texts) for i, texts in enumerate(given)]
    return TokenizedTask.build(name, task, "test", examples, tiny_tokenizer(), MAX_LENGTH)


class Exported:
    """An exported folder in onnxruntime, by nothing but its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tasks = json.loads((folder / "tasks.json").read_text())["tasks"]
        self.encoder = onnxruntime.InferenceSession(str(folder / "model.onnx"))

    def vectors(self, texts: list) -> np.ndarray:
        tokens = onnx_check.tokenize(tiny_tokenizer(), texts, MAX_LENGTH)
        return self.encoder.run(["sentence_embedding"], tokens)[0]

    def outputs(self, name: str, texts: list[str]) -> dict[str, np.ndarray]:
        task, others = self.tasks[name], texts[::-1]
        if task["encoding"] == "cross":
            vectors = [self.vectors(list(zip(texts, others, strict=True)))]
        elif task["encoding"] == "siamese":
            vectors = [self.vectors(texts), self.vectors(others)]
        else:
            vectors = [self.vectors(texts)]
        head = onnxruntime.InferenceSession(str(self.folder / "heads" / f"{name}.onnx"))
        names = [x.name for x in head.get_inputs()]
        results = head.run(None, dict(zip(names, vectors, strict=True)))
        return dict(zip([x.name for x in head.get_outputs()], results, strict=True))


def assert_predicts_the_same(folder: Path, saved: Path, names, texts: list[str]) -> None:
    exported, (model, _) = Exported(folder), load_model(saved)
    for name in names:
        rows = rows_of(name, texts)
        outputs = predict_outputs(model, rows)
        got = {key: torch.from_numpy(x) for key, x in exported.outputs(name, texts).items()}
        close = {"atol": 1e-5, "rtol": 1e-5}
        if TASKS[name].is_regression:
            torch.testing.assert_close(
                got["value"], predictions_of(model, rows, outputs), atol=1e-4, rtol=1e-5
            )
        else:
            torch.testing.assert_close(got["logits"], outputs, **close)
            torch.testing.assert_close(
                got["probabilities"], probabilities(TASKS[name], outputs), **close
            )


@pytest.mark.parametrize("pair_features", ["concat_difference", "concat"])
def test_every_head_and_encoding(pair_features, tmp_path, capsys):
    names = TASKS if pair_features == "concat_difference" else ("kinds", "para")
    saved = saved_model(tmp_path, "mean", names, pair_features)
    printed = export(saved, tmp_path / "onnx", capsys)
    difference = re.search(r"outputs differ by at most (\S+)\n", printed)[1]
    assert 0 < float(difference) < 1e-5
    check_directory(tmp_path / "onnx")
    for texts in (TEXTS, TEXTS[:1], TEXTS * 7):  # any number of texts, of any length
        assert_predicts_the_same(tmp_path / "onnx", saved, names, texts)


@pytest.mark.parametrize("pooling", ["cls", "cls_token"])
def test_every_pooling(pooling, tmp_path, capsys):
    saved = saved_model(tmp_path, pooling)
    export(saved, tmp_path / "onnx", capsys)
    assert_predicts_the_same(tmp_path / "onnx", saved, FEW, TEXTS)
    theirs = Exported(tmp_path / "onnx").encoder.run(
        ["last_hidden_state"], onnx_check.tokenize(tiny_tokenizer(), TEXTS, MAX_LENGTH)
    )[0]
    transformers = pytest.importorskip("transformers")
    tokens = onnx_check.tokenize(tiny_tokenizer(), TEXTS, MAX_LENGTH)
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(saved)(
            **{name: torch.from_numpy(x) for name, x in tokens.items()}
        ).last_hidden_state.numpy()
    is_real = tokens["attention_mask"][..., None]
    np.testing.assert_allclose(theirs * is_real, hidden * is_real, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    saved_model(folder, "mean", ("sst", "yes-no", "para", "sts", "nli"))
    assert main(["export", str(folder / "best"), "--onnx", str(folder / "onnx")]) == 0
    return folder / "onnx"


def test_the_block_of_the_readme_runs_every_head(exported):
    text = (exported / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code.replace(FOLDER, str(exported)), names)
    model, _ = load_model(exported.parent / "best")
    assert names["outputs"].keys() == model.tasks.keys()
    for name, outputs in names["outputs"].items():
        texts = (*names["first"], *names["second"])[: 2 if model.tasks[name].is_pair else 1]
        examples = [Example("1", texts)]
        rows = TokenizedTask.build(
            name, model.tasks[name], "test", examples, tiny_tokenizer(), MAX_LENGTH
        )
        value = predictions_of(model, rows, predict_outputs(model, rows)).item()
        if "value" in outputs:
            assert outputs["value"].item() == pytest.approx(value, abs=1e-4)
        else:
            assert outputs["probabilities"].argmax() == value
    assert "| yes-no | a text | binary | no, yes |" in text


def test_graphs_are_valid_open_in_number_and_length_and_name_no_file_of_this_machine(exported):
    root = str(Path(onnx_graphs.__file__).parents[2])
    for path in exported.rglob("*.onnx"):
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert root.encode() not in path.read_bytes()
        num_open = 1 if path.parent.name == "heads" else 2
        for value in graph.graph.input:
            axes = [axis.dim_param for axis in value.type.tensor_type.shape.dim]
            assert all(axes[:num_open]), f"{path.name}: {value.name} is fixed"


def test_files_have_the_mode_that_the_umask_gives(exported):
    os.umask(umask := os.umask(0))
    modes = {path.stat().st_mode & 0o777 for path in exported.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_the_folder_describes_the_encoder_as_transformers_reads_it(exported):
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoConfig.from_pretrained(exported).model_type == "bert"
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer("quiet film")["input_ids"] == tiny_tokenizer().encode("quiet film").ids
    assert not (exported / "model.safetensors").exists()


def test_large_weights_are_a_file_beside_the_graph(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_graphs, "_LARGEST", 100_000)  # of bytes; the encoder has more
    saved = saved_model(tmp_path, "mean", ("sst",))
    export(saved, tmp_path / "onnx", capsys)
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size > 100_000
    assert_predicts_the_same(tmp_path / "onnx", saved, ("sst",), TEXTS)


@pytest.fixture
def quick(exported, monkeypatch):
    """Copies the graphs of ``exported`` instead of making them, for those tasks that there are."""

    def copy_graphs(model: MultiTaskModel, folder: Path) -> None:
        shutil.copy(exported / "model.onnx", folder)
        (folder / "heads").mkdir()
        for name in model.tasks:
            shutil.copy(exported / "heads" / f"{name}.onnx", folder / "heads")

    monkeypatch.setattr(onnx_graphs, "write_graphs", copy_graphs)


def test_what_is_exported_again_replaces_the_earlier_files_and_no_other(
    quick, exported, tmp_path, capsys
):
    saved, folder = exported.parent / "best", tmp_path / "onnx"
    export(saved, folder, capsys)
    (folder / "notes.txt").write_text("mine")
    model, tokenizer = load_model(saved)
    for name in ("yes-no", "para", "sts", "nli"):
        del model.tasks[name], model.heads[name]
    (tmp_path / "less").mkdir()
    save_model(model, tmp_path / "less", tokenizer, max_length=MAX_LENGTH)
    export(tmp_path / "less", folder, capsys)
    assert [path.name for path in (folder / "heads").iterdir()] == ["sst.onnx"]
    assert (folder / "notes.txt").read_text() == "mine"
    check_directory(folder)


def test_outputs_that_differ_are_one_line_and_nothing_is_written(
    quick, exported, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(onnx_check, "_TOLERANCE", 0.0)
    assert main(["export", str(exported.parent / "best"), "--onnx", str(tmp_path / "onnx")]) == 2
    message = capsys.readouterr().err
    assert "the ONNX outputs are not the model's" in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_graph_of_other_weights_is_noticed(exported, tmp_path):
    model, tokenizer = load_model(exported.parent / "best")
    difference = onnx_check.largest_difference(model, exported, tokenizer, MAX_LENGTH)
    assert difference < 1e-5
    with torch.no_grad():
        model.heads["nli"].classifier.bias += 0.01
    with pytest.raises(onnx_check.OutputError, match="nli: logits differs by"):
        onnx_check.largest_difference(model, exported, tokenizer, MAX_LENGTH)


@pytest.mark.parametrize("where", ["model", "file", "other"])
def test_a_folder_of_something_else_is_not_touched(where, exported, tmp_path, capsys):
    saved = exported.parent / "best"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_text("somebody's")
    (tmp_path / "file").write_text("x")
    folder = {"model": saved, "file": tmp_path / "file", "other": tmp_path / "other"}[where]
    before = sorted(folder.rglob("*"))
    assert main(["export", str(saved), "--onnx", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"sbrrt-fast export: {folder}: ") and message.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    load_model(saved)


def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys):
    argv = ["export", str(tmp_path), "--onnx", str(tmp_path / "onnx")]
    assert main(argv) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(argv) == 2
    assert "needs onnx, onnxscript, onnxruntime, which is not installed; run " in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "onnx").exists()
