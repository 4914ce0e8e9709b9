"""The unit of a label does not matter, for regression and for cosine heads."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sbrrt_fast.config import (
    BregmanConfig,
    LogConfig,
    ModelConfig,
    RoundConfig,
    RunConfig,
    SmartConfig,
)
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.experiments.lockstep import train_in_lockstep
from sbrrt_fast.model.heads import CosineHead
from sbrrt_fast.model.io import load_model
from sbrrt_fast.model.label_units import LabelUnits
from sbrrt_fast.training.checkpoint import load_state
from sbrrt_fast.training.logging import RunLogger
from sbrrt_fast.training.scores.evaluate import evaluate, predict
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import read_log, sample_words, tiny_backbone

UNITS = {"of one": (0.0, 1.0), "minutes": (0.0, 60.0), "large": (-1e4, 1e4), "far": (500.0, 501.0)}
TASK = TaskConfig(
    files={"train": "train.tsv", "dev": "dev.tsv"},
    text_columns=("text",),
    label_column="y",
    head="regression",
)


def write_rows(folder: Path, low: float, high: float, num_rows: int = 40) -> Path:
    """Rows whose label is the share of words from the first half of the alphabet."""
    folder.mkdir(parents=True)
    words = sample_words()
    for split in ("train", "dev"):
        draw = random.Random(split)
        rows = ["id\ttext\tother\ty"]
        for i in range(num_rows):
            text = [draw.choice(words) for _ in range(draw.randint(2, 9))]
            share = sum(word < "m" for word in text) / len(text)
            other = " ".join(draw.choice(words) for _ in range(4))
            rows.append(f"{i}\t{' '.join(text)}\t{other}\t{low + (high - low) * share!r}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return str(tiny_backbone(tmp_path_factory.mktemp("units") / "backbone"))


def config_of(backbone: str, folder: Path, limits: tuple[float, float], **changes) -> RunConfig:
    config = RunConfig(
        data_dir=write_rows(folder / "data", *limits),
        output=folder / "run",
        model=ModelConfig(backbone=backbone),
        rounds=20,
        tasks={"share": replace(TASK, label_range=limits)},
        smart=SmartConfig(weight=1.0),
        bregman=BregmanConfig(weight=0.5),
        round=RoundConfig(batch_size=4),
        log=LogConfig(every=2, tensorboard=False, state_every=0),
    )
    optimizer = replace(config.optimizer, learning_rate=1e-3)
    return replace(config, optimizer=optimizer, **changes)


def trained(config: RunConfig) -> tuple[dict, list[dict], torch.Tensor]:
    """(metrics, logged lines, predictions on dev in the unit of 0 to 1)."""
    trainer = Trainer(config, lambda line: None)
    metrics = trainer.run()
    low, high = config.tasks["share"].label_range
    values = predict(trainer.model, trainer.dev_tasks["share"]).double()
    return metrics, read_log(config.output), (values - low) / (high - low)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("unit", ["minutes", "large", "far"])
def test_labels_in_another_unit_give_the_same_run(backbone, tmp_path, unit, backend):
    """Up to rounding: labels are read as float32, so far from 0 they have fewer digits."""
    runs = [
        trained(config_of(backbone, tmp_path / name, UNITS[name], backend=backend))
        for name in ("of one", unit)
    ]
    (metrics, lines, found), (other_metrics, other_lines, other_found) = runs
    digits = 2e-3 if unit == "far" else 1e-4
    for line, other in zip(lines, other_lines, strict=True):
        for name in ("share/loss", "share/smart", "share/bregman", "share/total", "gradient_norm"):
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=digits, abs=1e-7), name
    assert found.std() > 2e-3  # they are not all alike
    assert (other_found - found).abs().max() < (0.1 if unit == "far" else 0.01) * found.std()
    pearson = metrics["dev"]["share"]["pearson"]
    assert other_metrics["dev"]["share"]["pearson"] == pytest.approx(pearson, abs=1e-3)


@pytest.mark.parametrize("update", ["per_task", "joint"])
def test_both_steps_are_the_same_run(backbone, tmp_path, update):
    """Regression beside a classifier and a cosine of another unit."""
    sts = replace(BUILTIN_TASKS["sts"], files=TASK.files, text_columns=("text", "other"))
    sts = replace(sts, label_column="y", label_range=(-1e4, 1e4))
    config = config_of(backbone, tmp_path, UNITS["large"])
    tasks = {**config.tasks, "cosine": sts}
    config = replace(config, tasks=tasks, round=replace(config.round, update=update))
    slow = replace(config, backend="reference")
    found = train_in_lockstep(slow, config, 6, yardstick=True, log=lambda line: None)
    found.assert_same()
    assert found.losses[0]["a"]["share/loss"] < 10  # in units of the labels it would be 1e7


def test_a_fresh_head_predicts_near_the_mean_of_the_training_labels(backbone, tmp_path):
    trainer = Trainer(config_of(backbone, tmp_path, (-300.0, 900.0)), lambda line: None)
    labels = trainer.train_tasks["share"].labels.double()
    units = trainer.model.label_units("share")
    assert units.mean.item() == pytest.approx(labels.mean().item(), rel=1e-12)
    assert units.scale.item() == pytest.approx(labels.std(correction=0).item(), rel=1e-12)
    with torch.no_grad():
        trainer.model.heads["share"].classifier.weight.zero_()
    found = predict(trainer.model, trainer.dev_tasks["share"])
    assert torch.allclose(found, torch.full_like(found, labels.mean().item()), rtol=1e-6)


def test_constant_training_labels_are_learned(backbone, tmp_path):
    config = config_of(backbone, tmp_path, (0.0, 60.0))
    path = config.data_dir / "train.tsv"
    header, *rows = path.read_text().splitlines()
    rows = [row.rpartition("\t")[0] + "\t41.7" for row in rows]
    path.write_text("\n".join([header, *rows]) + "\n")
    trainer = Trainer(config, lambda line: None)
    trainer.run()
    units = trainer.model.label_units("share")
    assert (units.mean.item(), units.scale.item()) == (float(torch.tensor(41.7)), 1.0)
    found = predict(trainer.model, trainer.dev_tasks["share"])
    assert (found - 41.7).abs().max() < 2.0


def test_the_units_are_saved_with_the_model_and_the_state(backbone, tmp_path):
    config = config_of(backbone, tmp_path, UNITS["minutes"])
    config = replace(config, rounds=5, log=replace(config.log, state_every=2))
    trainer = Trainer(config, lambda line: None)
    metrics = trainer.run()
    scale = trainer.model.label_units("share").scale
    save_state_of(trainer)
    tensors, _ = load_state(config.output / "state")
    assert torch.equal(tensors["model.heads.share.units.scale"], scale)
    loaded, _ = load_model(config.output / "best")
    assert torch.equal(loaded.label_units("share").scale, scale)
    assert evaluate(loaded, trainer.dev_tasks) == metrics["dev"]
    found = [predict(model, trainer.dev_tasks["share"]) for model in (loaded, trainer.model)]
    assert torch.equal(*found) == (metrics["best_round"] == 5)
    assert 0 < found[0].mean() < 60


def save_state_of(trainer: Trainer) -> None:
    with RunLogger(trainer.config.output, LogConfig(tensorboard=False)) as logger:
        trainer._save_state(logger)


def test_a_resumed_run_keeps_its_units(backbone, tmp_path):
    """They come from the state, not from the labels that are there now."""
    config = config_of(backbone, tmp_path, UNITS["minutes"])
    first = Trainer(replace(config, rounds=6), lambda line: None)
    save_state_of(first)
    other = Trainer(replace(config, rounds=6), lambda line: None)
    other.model.label_units("share").fit(torch.tensor([1.0, 2.0]))
    other._resume()
    units = [trainer.model.label_units("share") for trainer in (first, other)]
    assert torch.equal(units[0].mean, units[1].mean)
    assert torch.equal(units[0].scale, units[1].scale)


def test_a_folder_without_units_is_refused_in_one_line(backbone, tmp_path):
    config = replace(config_of(backbone, tmp_path, UNITS["minutes"]), rounds=1)
    Trainer(config, lambda line: None).run()
    path = config.output / "last" / "heads.safetensors"
    tensors = {name: x for name, x in load_file(path).items() if ".units." not in name}
    save_file(tensors, path)
    with pytest.raises(
        WeightsError, match=r"share\.units\.mean \[\] is missing.*train anew"
    ) as error:
        load_model(config.output / "last")
    assert "\n" not in str(error.value)


def test_units_go_there_and_back():
    units, labels = LabelUnits(0.0, 1.0, persistent=True), torch.rand(50) * 3e38 - 1e38
    units.fit(labels)
    standard = units.standardize(labels)
    assert abs(standard.mean()) < 1e-12
    assert standard.std(correction=0) == pytest.approx(1.0)
    assert torch.equal(units.restore(standard).float(), labels)


def pooled_pairs() -> torch.Tensor:
    return torch.randn(10, 16, generator=torch.Generator().manual_seed(0))


def test_sts_is_trained_in_its_own_unit():
    """Bit for bit: its labels of 0 to 5 are what cosine heads are trained in."""
    head, pooled = CosineHead(BUILTIN_TASKS["sts"]), pooled_pairs()
    cosine = F.cosine_similarity(pooled[0::2], pooled[1::2], dim=-1, eps=1e-6)
    labels = torch.rand(1000) * 5
    assert torch.equal(head(pooled), 5.0 * cosine)
    assert torch.equal(head.units.standardize(labels).float(), labels)
    assert torch.equal(head.units.restore(labels).float(), labels)
    assert not head.state_dict()


@pytest.mark.parametrize("highest", [1.0, 60.0, 1e30])
def test_a_cosine_of_another_unit_has_the_loss_of_sts(highest):
    """So has its gradient; its predictions are in its own unit."""
    pooled, labels = pooled_pairs(), torch.tensor([0.0, 1.0, 2.5, 4.0, 5.0])
    heads = [
        CosineHead(replace(BUILTIN_TASKS["sts"], label_range=(0.0, top))) for top in (5.0, highest)
    ]
    gradients, values = [], []
    for head, scale in zip(heads, (1.0, highest / 5.0), strict=True):
        point = pooled.clone().requires_grad_()
        outputs = head(point)
        F.mse_loss(outputs, head.units.standardize(labels * scale).float()).backward()
        gradients.append(point.grad)
        values.append(head.units.restore(outputs.detach()) / scale)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.allclose(*values, rtol=1e-6)
