"""SMART in sentence-transformers: python examples/smart_sentence_transformers.py MODEL FOLDER"""

import sys

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from sbrrt_fast import SmartConfig
from sbrrt_fast.smart.sentence_loss import SmartLoss

PAIRS = {
    "first": ["a man eats", "it rains", "two dogs play", "she sings"],
    "second": ["someone has lunch", "the sun shines", "dogs are playing", "a car stops"],
    "score": [0.8, 0.2, 1.0, 0.0],
}


def main(name: str, folder: str) -> SentenceTransformerTrainer:
    torch.manual_seed(0)
    model = SentenceTransformer(name, device="cpu")
    settings = {"num_train_epochs": 4, "learning_rate": 1e-4, "logging_steps": 1, "report_to": []}
    arguments = SentenceTransformerTrainingArguments(
        folder, save_strategy="no", use_cpu=True, **settings
    )
    loss = SmartLoss(CoSENTLoss(model), SmartConfig(weight=1.0))
    trainer = SentenceTransformerTrainer(model, arguments, Dataset.from_dict(PAIRS), loss=loss)
    trainer.train()  # logs base_loss and smart, which is R_s by its weight
    print(f"R_s {loss.smart_output.loss:.2e}, by {loss.smart_output.jacobian}")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
