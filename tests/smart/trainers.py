"""transformers' Trainer with SMART, on a small BERT and twelve rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from sbrrt_fast import SmartConfig
from sbrrt_fast.smart.trainer import SmartTrainerMixin
from tests.smart.stock_models import padded_batch

LENGTHS = [9, 4, 7, 2, 5, 9, 3, 8, 6, 9, 2, 7]


class SmartTrainer(SmartTrainerMixin, Trainer):
    pass


def rows() -> list[dict[str, torch.Tensor]]:
    """Padded alike, so that examples do not depend on whom they share a batch with."""
    batch = {**padded_batch(LENGTHS), "labels": torch.arange(len(LENGTHS)) % 3}
    return [{name: x[i] for name, x in batch.items()} for i in range(len(LENGTHS))]


def smart_trainer(model: nn.Module, folder: Path, bregman=None, callbacks=(), **settings):
    """Six steps of four rows, without a schedule; saved after the third."""
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 3,
        "lr_scheduler_type": "constant", "logging_steps": 2, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "seed": 3, **settings,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **settings)
    smart, data = SmartConfig(weight=1.0), rows()
    trainer = SmartTrainer(
        model, arguments, train_dataset=data, eval_dataset=data[:4], smart=smart, bregman=bregman,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False  # see docs/smart_anywhere.md
    return trainer
