"""SmartLoss, SmartCallback and SmartTrainerMixin in processes: the whole batch's gradients."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sbrrt_fast import BregmanConfig, SmartConfig
from tests.smart.examples import save_small_model
from tests.smart.processes import apart, gradients, in_processes, noise_of_examples, own
from tests.smart.stock_models import bert, padded_batch

pytest.importorskip("transformers")

SMART = SmartConfig(weight=3.0)
LABELS = torch.tensor([0, 2, 1, 1])
SCORES = torch.tensor([1.0, 0.0, 0.4, 0.7])
FIRST = ["a joy to", "slow to a", "and a joy", "slow and slow"]
SECOND = ["joy to joy", "and slow a", "to joy and", "a slow joy"]


def wrapped(model: nn.Module) -> nn.Module:
    """As transformers' Trainer does it."""
    return DistributedDataParallel(model, find_unused_parameters=True)


def without_dropout() -> nn.Module:
    return bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()


# A loss of sentence-transformers


def sentence_gradients(model, loss, rows: slice) -> list[torch.Tensor]:
    columns = [model.preprocess(texts[rows]) for texts in (FIRST, SECOND)]
    sum(loss(columns, SCORES[rows]).values()).backward()
    return gradients(model)


def compare_sentences(rank: int, world_size: int, folder: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from sbrrt_fast.smart.sentence_loss import SmartLoss

    noise_of_examples()
    modules = [Transformer(folder), Pooling(32)]
    whole = SentenceTransformer(modules=modules, device="cpu").train()
    for module in whole.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model = copy.deepcopy(whole)
    loss = SmartLoss(losses.CosineSimilarityLoss(whole), SMART)
    expected = sentence_gradients(whole, loss, slice(None))
    inner = losses.CosineSimilarityLoss(model)
    inner.model = wrapped(model)
    loss = SmartLoss(inner, SMART)
    for _ in range(2):
        model.zero_grad()
        got = sentence_gradients(model, loss, own(rank, world_size, len(SCORES)))
        assert apart(got, expected) < 1e-3


def test_a_sentence_loss_has_the_whole_batch_s_gradients(tmp_path):
    pytest.importorskip("sentence_transformers")
    save_small_model(tmp_path)
    in_processes(2, compare_sentences, str(tmp_path))


# Lightning


class Module(nn.Module):
    """What of a LightningModule the callback leans on; Lightning calls a step through DDP so."""

    automatic_optimization = True

    def __init__(self):
        super().__init__()
        self.model = without_dropout()

    def training_step(self, batch):
        return self.model(**batch).loss

    def forward(self, batch):
        return self.training_step(batch)

    def log(self, name, value):
        pass


def compare_callback(rank: int, world_size: int) -> None:
    for name in ("lightning", "lightning.pytorch"):
        sys.modules[name] = ModuleType(name)
    sys.modules["lightning.pytorch"].Callback = type("Callback", (), {})
    callback_of = importlib.import_module("sbrrt_fast.smart.lightning").SmartCallback
    noise_of_examples()
    results = []
    for wrap, rows in ((lambda m: m, slice(None)), (wrapped, own(rank, world_size, 4))):
        module, callback = Module(), callback_of(SMART)
        around = wrap(module)
        callback.on_fit_start(SimpleNamespace(global_step=0, log_every_n_steps=1), module)
        batch = {**padded_batch(), "labels": LABELS}
        for _ in range(2):
            module.zero_grad()
            around({name: x[rows] for name, x in batch.items()}).backward()
        results.append(gradients(module))
    assert apart(results[1], results[0]) < 1e-3


def test_a_callback_has_the_whole_batch_s_gradients():
    in_processes(2, compare_callback)


def compare_lightning(rank: int, world_size: int, folder: str) -> None:
    import lightning

    from sbrrt_fast.smart.lightning import SmartCallback

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = without_dropout()

        def training_step(self, batch):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    noise_of_examples()
    batch, results = {**padded_batch(), "labels": LABELS}, []
    for devices, rows in ((1, slice(None)), (world_size, own(rank, world_size, 4))):
        rows_of_batch = [{name: x[rows] for name, x in batch.items()}]
        loader = torch.utils.data.DataLoader(rows_of_batch, batch_size=None)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
        trainer = lightning.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, max_epochs=2,
            use_distributed_sampler=False, default_root_dir=folder,
            callbacks=[SmartCallback(SMART)], **options,
        )  # fmt: skip
        module = Classifier()
        trainer.fit(module, loader)
        results.append([p.detach() for p in module.parameters()])
    moved = apart(results[0], [p.detach() for p in Classifier().parameters()])
    assert apart(results[1], results[0]) < 1e-3 * moved


def test_lightning_trains_as_one_process_does(tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed; a stand-in runs above")
    in_processes(2, compare_lightning, str(tmp_path))


# transformers' Trainer


def trained(folder: Path, size: int, checkpoint: str | None = None):
    from tests.smart.trainers import smart_trainer

    trainer = smart_trainer(
        without_dropout(), folder, BregmanConfig(weight=0.8, beta=0.75), optim="sgd",
        learning_rate=0.05, per_device_train_batch_size=size,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def weights_of(trainer) -> list[list[torch.Tensor]]:
    """The model's, and the teacher's averages."""
    averages = trainer._bregman.teacher.state_dict().values()
    return [[p.detach() for p in trainer.model.parameters()], list(averages)]


def train_and_resume(rank: int, world_size: int, folder: str) -> None:
    noise_of_examples()
    whole = trained(Path(folder) / "whole", 4 // world_size)
    assert isinstance(whole.model_wrapped, DistributedDataParallel)
    checkpoint = Path(folder) / "whole" / "checkpoint-3"
    resumed = trained(Path(folder) / "resumed", 4 // world_size, str(checkpoint))
    weights = weights_of(whole), weights_of(resumed)
    torch.save(weights, Path(folder) / f"{rank}.pt")


def test_a_trainer_trains_as_one_process_does(tmp_path, monkeypatch):
    """Its teacher too, which all processes have alike, and one that is resumed."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    noise_of_examples(monkeypatch.setattr)
    expected = weights_of(trained(tmp_path / "one", 4))
    in_processes(2, train_and_resume, str(tmp_path))
    (first, resumed), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    initial = [p.detach() for p in without_dropout().parameters()]
    for ours, theirs in zip(first, expected, strict=True):
        assert apart(ours, theirs) < 2e-3 * apart(theirs, initial)
    for ours, other, again in zip(first, second, resumed, strict=True):
        assert all(map(torch.equal, ours, other)) and all(map(torch.equal, ours, again))
