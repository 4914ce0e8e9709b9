"""SMART in a loop of one's own with Accelerate: accelerate launch smart_accelerate.py MODEL"""

import sys

import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from sbrrt_fast import SmartConfig, SmartRegularizer

TEXTS = ["a joy to watch", "slow and empty", "funny, warm and wise", "a mess", "never dull", "flat"]


def main(name: str, **settings) -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator(**settings)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = [{**tokenizer(text), "labels": 1 - i % 2} for i, text in enumerate(TEXTS)]
    collate = DataCollatorWithPadding(tokenizer)
    batches = torch.utils.data.DataLoader(rows, batch_size=6, shuffle=True, collate_fn=collate)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    regularizer = SmartRegularizer.for_transformers(model, SmartConfig(), tokenizer=tokenizer)
    gains = []
    for epoch in range(4):
        for batch in batches:
            smart = regularizer(**batch)
            gains.append(smart.gain().item())
            accelerator.backward(smart.model_output.loss + 1.0 * smart.loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: R_s {smart.loss:.2e}, gain {gains[-1]:.0f}")
    return gains


if __name__ == "__main__":
    main(*sys.argv[1:])
