"""A trained model's folder, as transformers, sentence-transformers and its own card load it."""

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

from sbrrt_fast import load
from sbrrt_fast.checksums import CHECKSUMS, check_directory, checksummed_directory
from sbrrt_fast.cli import main
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.pooling import POOLINGS
from sbrrt_fast.training.cards.usage import FIRST, FOLDER, SECOND, usage
from sbrrt_fast.training.scores.evaluate import predict_outputs
from sbrrt_fast.training.step.step import Step
from tests.all_tasks import TASKS
from tests.helpers import Killed, tiny_backbone, tiny_tokenizer, train_tiny
from tests.model.models import randomise

TEXTS = [
    "A quiet, funny film.",
    "No!",
    "The violin is hard to play without a teacher",
    "one very long text that does not end " * 20,
]
MAX_LENGTH = 24


def random_model(folder: Path, pooling: str, pair_features: str = "concat_difference"):
    """A model of every kind of head and encoding, with random weights."""
    encoder = MiniBert.from_folder(tiny_backbone(folder, pooling=pooling, max_length=64))
    model = MultiTaskModel(encoder, TASKS, pair_features)
    randomise(model.heads)
    return model


@pytest.fixture(scope="module", params=POOLINGS)
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(folder / "backbone", request.param)
    (folder / "best").mkdir()
    save_model(model, folder / "best", tiny_tokenizer(), max_length=MAX_LENGTH)
    return folder / "best"


def test_sentence_transformers_gives_the_vectors_of_the_heads(saved):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(saved), device="cpu")
    assert theirs.max_seq_length == MAX_LENGTH
    assert theirs.similarity_fn_name == "cosine"
    ours = load(saved, device="cpu").embed(TEXTS)
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).min() > 1e-3  # there is no Normalize
    np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=2e-6)
    theirs.save(str(saved.parent / "again"))
    np.testing.assert_allclose(load_model_vectors(saved.parent / "again"), ours, atol=2e-6)


def load_model_vectors(folder: Path) -> np.ndarray:
    """Vectors of the encoder in a folder that sentence-transformers wrote."""
    model = MultiTaskModel(MiniBert.from_folder(folder), {"sst": TASKS["sst"]})
    (folder / "ours").mkdir()
    save_model(model, folder / "ours", tiny_tokenizer(), max_length=MAX_LENGTH)
    return load(folder / "ours", device="cpu").embed(TEXTS)


def test_transformers_loads_encoder_and_tokenizer(saved):
    transformers = pytest.importorskip("transformers")
    encoder, report = transformers.AutoModel.from_pretrained(saved, output_loading_info=True)
    missing = report["missing_keys"]
    is_cls = json.loads((saved / "modules.json").read_text())[-1]["path"] == "2_Dense"
    assert not report["unexpected_keys"]
    assert not missing if is_cls else all(name.startswith("pooler.") for name in missing)
    weights = load_model(saved)[0].encoder.state_dict()
    theirs = encoder.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights.items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    expected = [tiny_tokenizer().encode(text).ids for text in TEXTS]
    assert tokenizer(TEXTS)["input_ids"] == expected


def run_block(code: str, folder: Path) -> dict:
    """The names that a block of Python leaves, with the reader's folder put in."""
    assert FOLDER in code
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace(FOLDER, str(folder)), names)
    assert printed.getvalue()
    return names


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def raw_outputs(model: MultiTaskModel, name: str) -> torch.Tensor:
    """What the card computes: logits, or values in the labels' unit."""
    task = model.tasks[name]
    texts = (FIRST[0], SECOND[0]) if task.is_pair else (FIRST[0],)
    rows = TokenizedTask.build(
        name, task, "test", [Example("1", texts)], tiny_tokenizer(), MAX_LENGTH
    )
    outputs = predict_outputs(model, rows)
    units = model.label_units(name)
    return outputs if units is None else units.restore(outputs).float()


@pytest.mark.parametrize("pair_features", ["concat_difference", "concat"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_blocks_of_the_card_compute_every_head(pooling, pair_features, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    model = random_model(tmp_path / "backbone", pooling, pair_features)
    (tmp_path / "best").mkdir()
    save_model(model, tmp_path / "best", tiny_tokenizer(), max_length=MAX_LENGTH)
    with_sentences, with_heads, with_us = blocks(usage(model, MAX_LENGTH))
    names = run_block(with_heads, tmp_path / "best")
    assert names["outputs"].keys() == TASKS.keys()
    for name, outputs in names["outputs"].items():
        torch.testing.assert_close(outputs, raw_outputs(model, name), atol=1e-4, rtol=1e-5)
    vectors = run_block(with_sentences, tmp_path / "best")["vectors"]
    expected = torch.cat([names["u"], names["v"]]).numpy()
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    run_block(with_us, tmp_path / "best")


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    run = train_tiny(folder, "--model.max-length", "20")
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_best_and_last_of_a_run_load_everywhere(trained):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    for name in ("best", "last"):
        check_directory(trained / name)
        theirs = sentence_transformers.SentenceTransformer(str(trained / name), device="cpu")
        ours = load(trained, device="cpu", which=name)
        assert theirs.max_seq_length == ours.max_length == 20
        np.testing.assert_allclose(theirs.encode(TEXTS), ours.embed(TEXTS), atol=2e-6)


def test_a_copied_model_cuts_texts_where_its_run_did(trained, tmp_path):
    copy = Path(shutil.copytree(trained / "best", tmp_path / "copy"))
    model = load(copy, device="cpu")
    assert model.max_length == 20
    np.testing.assert_array_equal(model.embed(TEXTS), load(trained, device="cpu").embed(TEXTS))


def as_earlier(folder: Path) -> None:
    """Makes a model's folder what earlier versions wrote: the encoder in a folder of its own."""
    old = folder.with_name("as_before")
    with checksummed_directory(old) as new:
        (new / "encoder").mkdir()
        for name in ("heads.safetensors", "tasks.json"):
            shutil.copy(folder / name, new / name)
        added = {"README.md", "sentence_bert_config.json", "config_sentence_transformers.json"}
        for path in folder.iterdir():
            if path.name not in {"heads.safetensors", "tasks.json", CHECKSUMS, *added}:
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, new / "encoder" / path.name)
    shutil.rmtree(folder)
    old.rename(folder)


def test_folders_of_earlier_versions_are_evaluated_and_predicted_the_same(run, capsys):
    for name in ("best", "last"):
        assert main(["evaluate", str(run), "--model", name, "--output", str(run / "new.json")]) == 0
        as_earlier(run / name)
        assert main(["evaluate", str(run), "--model", name, "--output", str(run / "old.json")]) == 0
        new, old = (json.loads((run / f"{which}.json").read_text()) for which in ("new", "old"))
        assert new["dev"] == old["dev"]
    assert main(["predict", str(run), "--split", "dev"]) == 0
    assert (run / "predictions" / "sst-dev-output.csv").is_file()
    (run / "best" / "encoder" / "model.safetensors").unlink()
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert f"{run / 'best' / 'encoder'} has no model.safetensors" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    flags = ["--rounds", "6", "--log.evaluate-every", "2", "--log.state-every", "2"]
    whole = train_tiny(tmp_path, *flags)
    cut, original = tmp_path / "cut", Step.round_of

    def killed(self, works, index, report=False):
        if index == 4:
            raise Killed
        return original(self, works, index, report)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "round_of", killed)
        with pytest.raises(Killed):
            train_tiny(tmp_path, *flags, "--output", str(cut))
    for name in ("best", "last"):
        as_earlier(cut / name)
    (cut / "last" / "encoder" / "mine.json").write_text("mine")
    assert main(["train", "--output", str(cut), "--resume"]) == 0
    weights = (whole / "last" / "model.safetensors").read_bytes()
    assert (cut / "last" / "model.safetensors").read_bytes() == weights
    assert [p.name for p in (cut / "last" / "encoder").iterdir()] == ["mine.json"]
    for name in ("best", "last"):
        ours, theirs = (load(folder, which=name).embed(TEXTS) for folder in (cut, whole))
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def umask(request):
    """Sets the process's umask for one test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True, ids=oct)
def test_everything_has_the_mode_that_the_umask_gives(umask, tmp_path):
    run = train_tiny(tmp_path, "--log.tensorboard", "--log.dev-rows", "5", "--log.keep-best", "2")
    assert main(["predict", str(run), "--split", "dev"]) == 0
    assert main(["evaluate", str(run), "--output", str(tmp_path / "scores" / "dev.json")]) == 0
    paths = list(tmp_path.rglob("*"))
    assert {"state.safetensors", "models", "dev.json"} <= {path.name for path in paths}
    wrong = {
        str(path): oct(path.stat().st_mode & 0o777)
        for path in paths
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert not wrong
