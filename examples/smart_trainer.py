"""SMART in transformers' Trainer: python examples/smart_trainer.py MODEL OUTPUT_FOLDER"""

import sys

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from sbrrt_fast import BregmanConfig, SmartConfig
from sbrrt_fast.smart.trainer import SmartTrainerMixin

TEXTS = ["a joy to watch", "slow and empty", "funny, warm and wise", "a mess", "never dull", "flat"]


class SmartTrainer(SmartTrainerMixin, Trainer):
    """Trainer with R_s and D_Breg in the loss."""


def main(name: str, folder: str) -> SmartTrainer:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    rows = [{**tokenizer(text), "labels": 1 - i % 2} for i, text in enumerate(TEXTS)]
    collate = DataCollatorWithPadding(tokenizer)
    settings = {"num_train_epochs": 4, "learning_rate": 1e-4, "logging_steps": 1, "report_to": []}
    arguments = TrainingArguments(folder, save_strategy="no", use_cpu=True, **settings)
    added = {"smart": SmartConfig(weight=1.0), "bregman": BregmanConfig(weight=0.8, beta=0.95)}
    trainer = SmartTrainer(model, arguments, collate, rows, processing_class=tokenizer, **added)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
