"""SMART in Lightning, by a callback: python examples/smart_lightning.py MODEL"""

import sys

import lightning
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sbrrt_fast import SmartConfig
from sbrrt_fast.smart.lightning import SmartCallback


class Classifier(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main(name: str, **settings) -> lightning.Trainer:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    batch = tokenizer(["a joy to watch", "slow and empty"], padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor([1, 0])
    smart = SmartCallback(SmartConfig(weight=1.0), tokenizer=tokenizer)
    trainer = lightning.Trainer(max_epochs=4, log_every_n_steps=1, callbacks=[smart], **settings)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2).train()
    trainer.fit(Classifier(model), torch.utils.data.DataLoader([{**batch}], batch_size=None))
    print("R_s {smart:.2e}, gain {smart_gain:.0f}".format(**trainer.callback_metrics))
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
