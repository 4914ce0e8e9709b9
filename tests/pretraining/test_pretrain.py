"""``sbrrt-fast pretrain``: checkpoints, resuming, what a run logs, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sbrrt_fast.checksums import check_directory
from sbrrt_fast.cli import main
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.pretraining import trainer as trainer_module
from sbrrt_fast.pretraining.step import PretrainStep
from sbrrt_fast.training.checkpoint import load_state
from tests.helpers import read_log, train_tiny
from tests.pretraining.runs import inputs, pretrain

RUN = (
    "--log.evaluate-every",
    "3",
    "--log.state-every",
    "2",
    "--next-sentence",
    "--head-rounds",
    "3",
)


@pytest.fixture(scope="module", autouse=True)
def _hears_ctrl_c():
    """A process started in the background of a shell ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone, and of a run never interrupted."""
    folder = tmp_path_factory.mktemp("pretrain")
    pretrain(folder, *RUN)
    return folder


@pytest.fixture(scope="module")
def run(place) -> Path:
    return place / "run"


class Killed(BaseException):
    """Ends a run as a kill does."""


def in_round(patch, number: int, happens) -> None:
    """Something happens while a round is being trained."""
    original = PretrainStep.round

    def round(self, batch, index):
        if index == number - 1:
            happens()
        return original(self, batch, index)

    patch.setattr(PretrainStep, "round", round)


def lines(run: Path) -> list[dict]:
    timing = ("rounds_per_second", "tokens_per_second")
    return [{k: v for k, v in r.items() if k not in timing} for r in read_log(run)]


def check_same_run(a: Path, b: Path) -> None:
    x, y = (load_file(run / "last" / "model.safetensors") for run in (a, b))
    assert x.keys() == y.keys() and all(x[key].equal(y[key]) for key in x)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (a, b)]
    for key in ("held_out", "held_out_before", "rounds"):
        assert metrics[0][key] == metrics[1][key]
    assert lines(a) == lines(b)


def refused(argv: list[str], capsys) -> str:
    """The one line of a command that refuses."""
    capsys.readouterr()
    assert main(["pretrain", *argv]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_run_logs_its_losses_and_its_speed(run):
    log = read_log(run)
    assert [r["round"] for r in log] == [0, 2, 3, 3, 4, 6, 6]
    scores = [r for r in log if "held_out/masked_words/loss" in r]
    trained = [r for r in log if "masked_words/loss" in r]
    assert len(scores) == 3 and len(trained) == 4
    for record in scores:
        perplexity = math.exp(record["held_out/masked_words/loss"])
        assert record["held_out/masked_words/perplexity"] == pytest.approx(perplexity)
        assert 0 <= record["held_out/next_sentence/accuracy"] <= 1
    for record in trained:
        total = record["masked_words/loss"] + record["next_sentence/loss"]
        assert record["pretraining/total"] == pytest.approx(total, rel=1e-6)
        assert record["tokens_per_second"] > 0 and record["gradient_norm"] > 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert (
        metrics["held_out_before"]["masked_words/loss"] == scores[0]["held_out/masked_words/loss"]
    )
    assert metrics["held_out"]["masked_words/loss"] == scores[-1]["held_out/masked_words/loss"]
    assert not (run / "state").exists()


def test_the_loss_falls(place, tmp_path):
    flags = ("--optimizer.learning-rate", "3e-3", "--rounds", "60", "--output", str(tmp_path / "x"))
    pretrain(place, *flags)
    metrics = json.loads((tmp_path / "x" / "metrics.json").read_text())
    before, after = (metrics[k]["masked_words/loss"] for k in ("held_out_before", "held_out"))
    assert after < before - 1


@pytest.mark.parametrize("number", [1, 4, 6])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_run_goes_on_as_if_it_had_not(
    place, tmp_path, monkeypatch, capsys, name, number
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        in_round(patch, number, lambda: os.kill(os.getpid(), signal.Signals[name]))
        flags = [*inputs(place), *RUN, "--output", str(run)]
        assert main(["pretrain", *flags]) == {"SIGTERM": 143, "SIGINT": 130}[name]
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"the state after round {number} of 6 is saved" in message
    assert not (run / "metrics.json").exists()
    command = message.partition("`")[2].rstrip("`").split()
    assert main(command[1:]) == 0
    check_same_run(run, place / "run")


def killed(place: Path, run: Path, number: int, monkeypatch) -> Path:
    def kill():
        raise Killed

    flags = [*inputs(place), *RUN, "--output", str(run)]
    with monkeypatch.context() as patch:
        in_round(patch, number, kill)
        with pytest.raises(Killed):
            main(["pretrain", *flags])
    return run


@pytest.mark.parametrize("number", [3, 5, 6])
def test_a_killed_run_goes_on_from_its_last_state(place, tmp_path, monkeypatch, number):
    run = killed(place, tmp_path / "run", number, monkeypatch)
    assert load_state(run / "state")[1]["progress"]["cursor"]["round"] == (number - 1) // 2 * 2
    assert main(["pretrain", "--output", str(run), "--resume"]) == 0
    check_same_run(run, place / "run")


def test_a_signal_during_an_evaluation_gives_it_up_and_it_is_made_up_for(
    place, tmp_path, monkeypatch
):
    run, original, calls = tmp_path / "run", trainer_module.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    flags = [*inputs(place), *RUN, "--output", str(run)]
    assert main(["pretrain", *flags]) == 143
    assert not (run / "last").exists()
    assert main(["pretrain", "--output", str(run), "--resume"]) == 0
    check_same_run(run, place / "run")


def test_a_checkpoint_is_an_encoder_for_training(place, run, tmp_path, capsys):
    check_directory(run / "last")
    flags = ["--backbone", str(run / "last"), "--data-dir", str(place / "data"), "--rounds", "2"]
    flags += ["--round.batch-size", "4", "--log.no-tensorboard", "--output", str(tmp_path / "x")]
    assert main(["train", *flags]) == 0
    assert f"backbone {run / 'last'}: pooling 'mean' from 1_Pooling" in capsys.readouterr().out
    saved, before = MiniBert.from_folder(run / "last"), MiniBert.from_folder(place / "backbone")
    tensors = load_file(run / "last" / "model.safetensors")
    for name, x in saved.state_dict().items():
        assert x.equal(tensors[f"bert.{name}"])
    name = "encoder.layer.0.output.dense.weight"
    assert not saved.state_dict()[name].equal(before.state_dict()[name])


def test_transformers_take_the_checkpoint_with_its_heads(run):
    transformers = pytest.importorskip("transformers")
    folder = str(run / "last")
    tensors = load_file(run / "last" / "model.safetensors")
    for kind in (transformers.AutoModelForMaskedLM, transformers.BertForPreTraining):
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        words = tensors["bert.embeddings.word_embeddings.weight"]
        assert model.get_output_embeddings().weight.equal(words)
        dense = "predictions.transform.dense.weight"
        assert model.cls.get_parameter(dense).equal(tensors[f"cls.{dense}"])
        assert model.cls.predictions.decoder.bias.equal(tensors["cls.predictions.bias"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.mask_token == "[MASK]"


def test_sentence_transformers_take_the_checkpoint(run):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(run / "last"), device="cpu")
    assert model.encode(["a joy"]).shape == (1, 32)


def test_pre_training_goes_on_with_the_heads_of_its_checkpoint(place, run, tmp_path, capsys):
    capsys.readouterr()
    flags = ["--backbone", str(run / "last"), "--next-sentence", "--output", str(tmp_path / "x")]
    pretrain(place, *flags)
    line = "masked-word head taken, next-sentence head taken, pooler taken"
    assert line in capsys.readouterr().out
    metrics = [json.loads((r / "metrics.json").read_text()) for r in (run, tmp_path / "x")]
    assert metrics[1]["held_out_before"] == metrics[0]["held_out"]


def test_half_a_head_is_refused(place, run, tmp_path, capsys):
    folder = Path(shutil.copytree(run / "last", tmp_path / "half"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["cls.predictions.transform.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    message = refused([*inputs(place), "--backbone", str(folder)], capsys)
    assert "predictions.transform.dense.bias [32] is missing" in message


def test_a_resumed_run_may_not_change(place, tmp_path, monkeypatch, capsys):
    run = killed(place, tmp_path / "run", 4, monkeypatch)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    resume = ["--output", str(run), "--resume"]
    message = refused([*resume, "--masking.share", "0.2"], capsys)
    assert "was started with masking.share 0.15, not 0.2" in message
    assert "splits ['train'], not ['train', 'dev']" in refused(
        [*resume, "--splits", "train", "dev"], capsys
    )
    data = Path(shutil.copytree(place / "data", tmp_path / "data"))
    path = data / "sts-train.csv"
    path.write_text(path.read_text().replace(" a ", " one ", 1), encoding="utf-8")
    other = [*resume, "--data-dir", str(data)]
    assert "the text to train on, as tokenised, is not what" in refused(other, capsys)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_not_resumed(place, run, capsys):
    assert "the run is finished" in refused(["--output", str(run), "--resume"], capsys)
    flags = [*inputs(place), "--output", str(run)]
    assert "holds a run already" in refused(flags, capsys)


def test_the_settings_of_a_run_are_a_configuration(place, run, tmp_path, capsys):
    flags = ["--config", str(run / "pretrain.yaml"), "--output", str(tmp_path / "x")]
    assert main(["pretrain", *flags]) == 0
    check_same_run(tmp_path / "x", run)


def test_runs_of_training_and_of_pre_training_are_told_apart(place, run, tmp_path, capsys):
    for command in (["evaluate", str(run)], ["train", "--output", str(run), "--resume"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "config.yaml" in message and message.count("\n") == 1
    trained = train_tiny(tmp_path)
    message = refused(["--output", str(trained), "--resume"], capsys)
    assert "is no run of `sbrrt-fast pretrain`" in message
    pretrain(place, "--output", str(trained), "--overwrite")
    assert not (trained / "config.yaml").exists() and not (trained / "best").exists()
    train_tiny(tmp_path, "--overwrite")
    assert not (trained / "pretrain.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks"], "there is no text to train on; name tasks"),
        (["--tasks", "sstt"], "'sstt' is not a built-in task; did you mean 'sst'?"),
        (["--text", "a.txt"], "text: must be left out where tasks are named"),
        (["--batch-size", "500"], "the text is too short: it makes 120 sequences"),
        (["--max-length", "4"], "max_length: must be at least 8, got 4"),
        (["--masking.share", "1"], "masking.share: must be above 0 and below 1"),
        (["--masking.random", "0.3"], "masking.random: must be at most 1 together with"),
        (["--held-out.source", "share", "--held-out.share", "0.001"], "of 120 sequences is none"),
        (["--splits", "dev", "--held-out.source", "dev"], "held_out.source: must be another one"),
        (["--optimizer.learning-rate", "0"], "optimizer.learning_rate: must be above 0"),
        (["--next-sentence", "--tasks", "sst"], "next_sentence: needs text in which sentences"),
        (["--backbone", "/none"], "backbone '/none': there is no such folder"),
        (["--nope", "3"], "Unrecognized options: --nope"),
    ],
)
def test_a_mistake_is_one_line(place, tmp_path, capsys, flags, message):
    output = tmp_path / "x"
    assert message in refused([*inputs(place), "--output", str(output), *flags], capsys)
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; check --text"),
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"one line\n", "the text is too short: it makes 1 sequences"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_one_line(place, tmp_path, capsys, text, message):
    path = tmp_path / "x.txt"
    if text is not None:
        path.write_bytes(text)
    flags = ["--text", str(path), "--backbone", str(place / "backbone")]
    assert message in refused([*flags, "--output", str(tmp_path / "run")], capsys)


def test_text_files_are_trained_on(place, tmp_path):
    lines = [f"{i} slow and empty films, number {i}\n" * 3 for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:20]))
    (tmp_path / "b.txt").write_text("\n".join(lines[20:]))
    flags = ["--text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--batch-size", "8"]
    flags += ["--backbone", str(place / "backbone"), "--next-sentence", "--masking.whole-words"]
    flags += ["--held-out.share", "0.2", "--rounds", "3", "--log.no-tensorboard"]
    assert main(["pretrain", *flags, "--output", str(tmp_path / "run")]) == 0
    (scores, *_) = read_log(tmp_path / "run")
    assert scores["held_out/next_sentence/loss"] > 0


def test_held_out_text_without_pairs_has_its_words_scored(place, tmp_path, capsys):
    flags = ["--next-sentence", "--held-out.source", "share", "--held-out.share", "0.02"]
    pretrain(place, *flags, "--seed", "1", "--output", str(tmp_path / "x"))
    assert "words alone are scored" in capsys.readouterr().out
    scores = json.loads((tmp_path / "x" / "metrics.json").read_text())["held_out"]
    assert scores.keys() == {f"masked_words/{x}" for x in ("loss", "accuracy", "perplexity")}


def test_weights_that_become_infinite_end_the_run(place, tmp_path, monkeypatch, capsys):
    original = PretrainStep.round

    def round(self, batch, index):
        if index == 2:
            with torch.no_grad():
                self.model.cls.predictions.bias.fill_(float("nan"))
        return original(self, batch, index)

    monkeypatch.setattr(PretrainStep, "round", round)
    assert main(["pretrain", *inputs(place), "--output", str(tmp_path / "x")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "round 4: " in message and "not finite, so training cannot go on" in message
    assert not (tmp_path / "x" / "last").exists()
