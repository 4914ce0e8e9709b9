"""Lengths of the real task data in tokens, stored as numbers in ``lengths.json``.

    python -m benchmarks.harness.lengths --data-dir DIR

counts them anew. Benchmarks draw their batches from the stored histograms, so that they need
neither the data nor a tokenizer.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections import Counter
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch

STORED = Path(__file__).with_name("lengths.json")
TASKS = ("sst", "para", "sts")


@cache
def histograms() -> dict[str, dict[int, int]]:
    """Task -> length of a sequence in tokens -> how many of the training split have it."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))["tasks"]
    return {
        task: {int(length): count for length, count in counts["sequences"].items()}
        for task, counts in stored.items()
    }


def typical(task: str, num_sequences: int) -> list[int]:
    """Lengths of a batch like the data: evenly spaced quantiles of the task's histogram.

    They rise and fall again, so that neighbours differ as little as they can.
    """
    lengths = _quantiles(task, [(i + 0.5) / num_sequences for i in range(num_sequences)])
    return lengths[::2] + lengths[1::2][::-1]


def drawn(task: str, num_sequences: int, generator: torch.Generator) -> list[int]:
    """Lengths of a random batch: one from each of so many equal parts of the task's histogram.

    So batches differ, but not much in their number of tokens. Their order is random.
    """
    within = torch.rand(num_sequences, generator=generator).tolist()
    lengths = _quantiles(task, [(i + x) / num_sequences for i, x in enumerate(within)])
    return [lengths[i] for i in torch.randperm(num_sequences, generator=generator).tolist()]


def _quantiles(task: str, levels: list[float]) -> list[int]:
    """Quantiles of the lengths of the task's sequences, at levels between 0 and 1."""
    counts = sorted(histograms()[task].items())
    reached = list(accumulate(count for _, count in counts))
    return [counts[bisect_left(reached, level * reached[-1])][0] for level in levels]


def count(data_dir: Path, backbone: str) -> dict:
    """What ``lengths.json`` holds."""
    from sbrrt_fast.config import RunConfig
    from sbrrt_fast.data.tokenizer import load_tokenizer
    from sbrrt_fast.model.backbone import resolve_backbone
    from sbrrt_fast.training.build import load_splits

    config = RunConfig(data_dir=data_dir)
    tokenizer = load_tokenizer(resolve_backbone(backbone))
    tasks = load_splits(config, tokenizer, "train", 512)
    counts = {
        name: {
            "examples": task.num_examples,
            "mean": round(task.lengths.double().mean().item(), 2),
            "sequences": {str(k): v for k, v in sorted(Counter(task.lengths.tolist()).items())},
        }
        for name, task in tasks.items()
    }
    return {"split": "train", "tokenizer": "bert-base-uncased's vocabulary", "tasks": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--backbone", default="minilm", help="whose tokenizer counts")
    args = parser.parse_args()
    STORED.write_text(json.dumps(count(args.data_dir, args.backbone)) + "\n", encoding="utf-8")
    for task, histogram in histograms().items():
        print(task, sum(histogram.values()), "sequences,", typical(task, 8))


if __name__ == "__main__":
    main()
