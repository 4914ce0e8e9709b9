"""Steps of transformers' Trainer on rows of a task's lengths, for ``benchmarks.tune.hf_patch``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

STEPS = 4  # timed in a turn, after a first one

Row = dict[str, Tensor]


class Clock(TrainerCallback):
    """When each step of the last ``train()`` ended, in seconds."""

    def __init__(self, device: str):
        self.device, self.ends = device, []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def rows_of(lengths: list[int]) -> list[Row]:
    """Sequences of random ids, with labels of two classes."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1000, 30000, (n,), generator=generator) for n in lengths]
    return [{"input_ids": x, "labels": torch.tensor(i % 2)} for i, x in enumerate(ids)]


def padded(rows: list[Row]) -> Row:
    """Rows as a data loader of transformers collates them."""
    ids = [row["input_ids"] for row in rows]
    mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
    labels = torch.stack([row["labels"] for row in rows])
    padded_ids = pad_sequence(ids, batch_first=True)
    return {"input_ids": padded_ids, "attention_mask": mask, "labels": labels}


def trainer_of(
    model: nn.Module, rows: list[Row], size: int, precision: str, device: str, folder: Path
) -> Trainer:
    """A Trainer with its own settings, but for logs and checkpoints, of which it has none."""
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=size, max_steps=STEPS + 1, seed=0, report_to=[],
        bf16=precision == "bf16", use_cpu=device == "cpu", disable_tqdm=True, save_strategy="no",
        logging_strategy="no", learning_rate=1e-5, dataloader_pin_memory=device == "cuda",
    )  # fmt: skip
    trainer = Trainer(model, arguments, padded, rows, callbacks=[Clock(device)])
    trainer.remove_callback(PrinterCallback)
    return trainer


def turn_of(trainer: Trainer) -> Callable[[], float]:
    """Trains anew for a few steps, always the same batches: seconds per step after the first."""
    clock = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))

    def turn() -> float:
        trainer.train()
        return (clock.ends[-1] - clock.ends[0]) / STEPS

    return turn


def num_tokens(trainer: Trainer) -> tuple[int, int]:
    """Real and padded tokens of an epoch's batches."""
    masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    return int(sum(mask.sum() for mask in masks)), sum(mask.numel() for mask in masks)
