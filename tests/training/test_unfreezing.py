"""Frozen layers and gradual unfreezing, by their definitions."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.config import OptimizerConfig, RunConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.height import height_of
from sbrrt_fast.model.io import load_model
from sbrrt_fast.training.step.resting import Unfreezing
from tests.helpers import small_sample, tiny_backbone
from tests.model.models import random_model
from tests.training.steps import (
    JOINT,
    SBRRT,
    autograd,
    build,
    captured,
    make_round,
    state,
    with_optimizer,
    written_out,
)
from tests.training.test_resume import inputs, refused, same_run, same_state, signal_in_round

KINDS = {"written out": written_out, "captured": captured, "autograd": autograd}
PARTS = ("encoder.embeddings.", "encoder.encoder.layer.0.", "encoder.encoder.layer.1.")
RUN = (
    *("--rounds", "6", "--round.batch-size", "4", "--bregman.weight", "0.5", "--log.every", "2"),
    *("--log.evaluate-every", "6", "--log.no-tensorboard", "--optimizer.learning-rate", "1e-3"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone."""
    folder = tmp_path_factory.mktemp("unfreezing")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    return folder


def train(place: Path, output: Path, *flags: str) -> list[str]:
    return ["train", *inputs(place), "--output", str(output), *RUN, *flags]


def part_of(name: str) -> int | None:
    """Which of ``PARTS`` a tensor of a state belongs to, by hand; None for pooler and heads."""
    return next((i for i, part in enumerate(PARTS) if part in name), None)


@pytest.mark.parametrize("update", ["per_task", "joint"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_yet_unfrozen_keeps_every_bit(kind, update):
    """Weights, moments, numbers of updates, the teacher; and all else is updated."""
    config = with_optimizer(SBRRT, unfreeze_every=2)
    backend = "reference" if kind == "autograd" else "auto"
    config = replace(config, backend=backend, round=replace(config.round, update=update))
    step = build(KINDS[kind], config, pooling="cls")
    each = 1 if update == "joint" else 3
    first = {2: 2, 1: 4, 0: 6}  # rounds done before each part trains
    for index in range(8):
        before = {name: x.clone() for name, x in state(step).items()}
        step.round(make_round(index), index)
        after = state(step)
        assert step.model.encoder.embeddings.word_embeddings.weight.requires_grad
        for name, x in after.items():
            part = part_of(name)
            if part is not None and index < first[part]:
                assert name in before and x.equal(before[name]), (index, name)
                assert not name.startswith("optimizer."), (index, name)
            elif name.endswith(".step") and name.startswith("optimizer.encoder."):
                since = first.get(part, 0)
                assert int(x) == (index + 1 - since) * each, (index, name)
            elif part is not None and name.startswith(("model.", "teacher.")):
                changes = not x.equal(before[name])
                assert changes or "type_embeddings" in name or "key.bias" in name, (index, name)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("config", [SBRRT, JOINT], ids=["per task", "joint"])
@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_gradients_of_what_trains_are_those_of_a_run_that_trains_all(config, done, pooling):
    """And there are no others; SMART's ascent goes down to the embeddings all the same."""
    config = with_optimizer(config, unfreeze_every=1)
    rng = torch.tensor([3, 1])
    for kind, backend in ((written_out, "auto"), (autograd, "reference")):
        step = build(kind, replace(config, backend=backend), pooling=pooling)
        for batch in make_round():
            step.rest(3)
            whole = step.gradients(batch, rng)
            step.rest(done)
            found = step.gradients(batch, rng)
            trains = {n for n in whole if (part_of(n) is None) or done >= 3 - part_of(n)}
            assert found.keys() == trains
            largest = max(g.norm() for g in whole.values())
            for name, gradient in found.items():
                distance = (gradient - whole[name]).norm()
                assert distance <= 1e-5 * gradient.norm() + 1e-7 * largest, name


def test_which_part_rests_when():
    def heights(**fields) -> list[int]:
        unfreezing = Unfreezing(random_model(), OptimizerConfig(**fields))
        return [unfreezing.at(done).num_heights for done in range(8)]

    assert heights() == [0] * 8
    assert heights(unfreeze_every=2) == [3, 3, 2, 2, 1, 1, 0, 0]
    assert heights(unfreeze_every=3) == [3, 3, 3, 2, 2, 2, 1, 1]
    assert heights(frozen_layers=1) == [2] * 8
    assert heights(frozen_layers=1, unfreeze_every=3) == [3, 3, 3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"unfreeze_every": 4}, 12),
        ({"unfreeze_every": 3}, None),
        ({"unfreeze_every": 10, "frozen_layers": 1}, 10),
        ({"unfreeze_every": 9, "frozen_layers": 1}, None),
        ({"frozen_layers": 1}, None),
    ],
)
def test_a_run_that_ends_before_all_trains_is_told_so(fields, needed):
    line = Unfreezing(random_model(), OptimizerConfig(**fields)).late_line(10)
    if needed is None:
        assert line is None
    else:
        assert line.endswith(f"does not train in 10 rounds; it does after {needed}")


def test_heights_by_name():
    names = {
        "encoder.embeddings.LayerNorm.bias": 0,
        "encoder.model.embed_tokens.weight": 0,
        "encoder.encoder.layer.0.attention.self.query.weight": 1,
        "encoder.encoder.layer.11.output.LayerNorm.weight": 12,
        "encoder.model.layers.3.attn.Wqkv.weight": 4,
        "encoder.encoder.layer.2.attention.self.query.lora_A.default.weight": 3,
        "encoder.block.5.layer.0.SelfAttention.q.weight": 6,
        "encoder.pooler.dense.weight": None,
        "heads.layer.classifier.weight": None,
        "heads.embeddings.classifier.weight": None,
    }
    assert {name: height_of(name) for name in names} == names


def test_layers_that_are_shared_with_a_teacher_stay_where_they_are():
    """Written-out passes of student and teacher read the same memory of frozen layers."""
    step = build(written_out, with_optimizer(JOINT, frozen_layers=1))
    query = step.model.encoder.encoder.layer[0].attention.self.query.weight
    places = []
    for index in range(3):
        step.round(make_round(index), index)
        places.append(query.data_ptr())
    assert len(set(places)) == 1
    weights = step.passes.student.weights.layers[0].qkv, step.passes.momentum.weights.layers[0].qkv
    assert weights[0].data_ptr() == weights[1].data_ptr() == query.data_ptr()


def test_a_run_with_frozen_layers_leaves_them_as_they_were_loaded(place, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = (
        "--optimizer.frozen-layers",
        "1",
        "--smart.weight",
        "1",
        "--optimizer.layer-decay",
        ".9",
    )
    assert main(train(place, whole, *flags)) == 0
    found = load_model(whole / "last")[0].encoder.state_dict()
    loaded = load_model_of_backbone(place / "backbone")
    for name, x in loaded.items():
        moved = not found[name].equal(x)
        assert moved == ("layer.1." in name), name
    with pytest.MonkeyPatch.context() as patch:
        signal_in_round(patch, 3, signal.SIGTERM)
        assert main(train(place, run, *flags)) == 143
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, whole) and same_state(run, whole)


def load_model_of_backbone(folder: Path) -> dict[str, torch.Tensor]:
    from sbrrt_fast.model.bert import MiniBert

    return MiniBert.from_pretrained(str(folder), "mean").state_dict()


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_that_unfreezes_resumes_as_if_it_had_not_stopped(place, tmp_path, number):
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = ("--optimizer.unfreeze-every", "2", "--average.weights", "swa")
    assert main(train(place, whole, *flags)) == 0
    with pytest.MonkeyPatch.context() as patch:
        signal_in_round(patch, number, signal.SIGTERM)
        assert main(train(place, run, *flags)) == 143
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, whole) and same_state(run, whole)
    assert json.loads((run / "metrics.json").read_text())["skipped_updates"] == 0


def test_adapters_of_frozen_layers_do_not_train(place, tmp_path):
    pytest.importorskip("peft")
    flags = ("--lora.rank", "2", "--rounds", "2", "--log.evaluate-every", "2")
    assert main(train(place, tmp_path / "run", *flags, "--optimizer.frozen-layers", "1")) == 0
    found = load_model(tmp_path / "run" / "last")[0].encoder.state_dict()
    for name, x in load_model_of_backbone(place / "backbone").items():
        is_adapted = "layer.1." in name and name.endswith(("query.weight", "value.weight"))
        assert found[name].equal(x) != is_adapted, name


@pytest.mark.parametrize("name", ["frozen_layers", "unfreeze_every"])
def test_settings_that_contradict_the_mode_are_refused(name):
    with pytest.raises(ConfigError, match=rf"optimizer\.{name}: must be 0 with mode 'pretrain'"):
        RunConfig(mode="pretrain", optimizer=OptimizerConfig(**{name: 1}))
    with pytest.raises(ConfigError, match=rf"optimizer\.{name}: must be at least 0"):
        RunConfig(optimizer=OptimizerConfig(**{name: -1}))


def test_more_layers_than_there_are_are_refused(place, tmp_path, capsys):
    message = refused(train(place, tmp_path / "x", "--optimizer.frozen-layers", "3"), capsys)
    assert "optimizer.frozen_layers: must be at most 2, the encoder's number of layers" in message


def test_a_task_of_which_nothing_trains_is_refused(place, tmp_path, capsys):
    message = refused(train(place, tmp_path / "x", "--optimizer.frozen-layers", "2"), capsys)
    assert "tasks.sts.head: 'cosine' has no weights, so with optimizer.frozen_layers 2" in message
