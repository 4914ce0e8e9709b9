"""A short training run, without the libraries that the command line needs; its dev scores.

    python -m benchmarks.harness.short_run OUT [--rounds 100]

It trains SBRRT in bf16, and evaluates in fp32, on DATA, a folder of the task files, or on the
built-in sample, from the weights in BACKBONE, a folder, or MiniLM's. ``OUT/short_run.json`` has
rounds per second and the scores before and after.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.harness.results import write_json
from benchmarks.harness.rounds import SBRRT, backbone, build_ours, data_dir, real_rounds
from benchmarks.harness.settings import settings
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.model.backbone import resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.training.build import load_splits
from sbrrt_fast.training.scores.evaluate import evaluate
from sbrrt_fast.training.step.group import TaskBatch

FILE = "short_run.json"


class ShortRun:
    """Model, data and step of a run of so many rounds."""

    def __init__(self, num_rounds: int):
        folder = resolve_backbone(backbone())
        encoder = MiniBert.from_folder(folder, pooling=SBRRT.model.pooling)
        tokenizer = load_tokenizer(folder)
        config = replace(SBRRT, data_dir=data_dir())
        longest = encoder.config.max_position_embeddings
        self.train_tasks, self.dev_tasks = (
            load_splits(config, tokenizer, split, longest) for split in ("train", "dev")
        )
        self.num_rounds = num_rounds
        self.step = build_ours(encoder, config, settings().device, num_rounds=num_rounds)

    def rounds(self) -> Iterator[list[TaskBatch]]:
        """The batches of the run."""
        return real_rounds(self.train_tasks, SBRRT.round, SBRRT.seed, self.num_rounds)

    def scores(self) -> dict:
        """Of the dev splits."""
        self.step.model.eval()
        return evaluate(self.step.model, self.dev_tasks)

    def train(self) -> dict[str, float]:
        """The last round's loss terms."""
        terms = {}
        self.step.model.train()
        for index, batches in enumerate(self.rounds()):
            terms = self.step.round(batches, index)
        return {name: value.item() for name, value in terms.items()}  # waits for the device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    run = ShortRun(args.rounds)
    before, start = run.scores(), time.perf_counter()
    terms = run.train()
    seconds = time.perf_counter() - start
    record = {
        "data": str(data_dir() or "the built-in sample"),
        "backbone": backbone(),
        "rounds": args.rounds,
        "rounds_per_second": args.rounds / seconds,
        "before": before,
        "after": run.scores(),
        "last_round": terms,
        "memory": run.step.memory(),
        "round_config": asdict(SBRRT.round),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / FILE, record)
    print(json.dumps(record, indent=1), *run.step.summary(), sep="\n")


if __name__ == "__main__":
    main()
