"""One SBRRT round end to end: this package against Hugging Face's BertModel and our reference.

    python -m benchmarks.bench_round --data-dir DIR --rounds 15 --output round.json

trains all variants side by side, one round of each in turn on the same examples, and prints
medians with quartiles and ratios. Under pytest it times the built-in sample.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbrrt_fast.config import BregmanConfig, RunConfig, SmartConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.model.hub import resolve_backbone
from sbrrt_fast.training.trainer import Trainer

RECIPE = Path(__file__).parents[1] / "configs" / "sbrrt.yaml"
PEERS = ("hf fp32 eager", "hf fp32", "hf bf16", "hf bf16 compile")
OURS = ("reference fp32", "fast fp32", "fast bf16", "fast bf16 joint", "plain bf16")
WARM_UP = 3


def config_of(name: str, base: RunConfig) -> RunConfig:
    """The run behind one of our variants."""
    kind, precision, *rest = name.split()
    config = replace(base, precision=precision)
    if kind == "reference":
        config = replace(config, backend="reference")
    if kind == "plain":
        config = replace(config, smart=SmartConfig(), bregman=BregmanConfig())
    if rest == ["joint"]:
        config = replace(config, round=replace(config.round, update="joint"))
    return config


def build(name: str, base: RunConfig, source: Trainer) -> Callable[[list, int], None]:
    """A function of (batches, index) that trains one round of a variant."""
    if name in OURS:
        trainer = Trainer(config_of(name, base), lambda line: None)
        trainer.train_tasks = source.train_tasks  # the tokens once in memory
        return trainer.step.round
    from benchmarks.peers.hugging_face import HuggingFaceRound

    _, precision, *rest = name.split()
    folder = str(resolve_backbone(base.backbone or base.model.backbone))
    attention = "eager" if rest == ["eager"] else "sdpa"
    peer = HuggingFaceRound(folder, base, precision, attention, rest == ["compile"])
    return lambda batches, index: peer.round(batches)


def run(base: RunConfig, names: list[str], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by variant, interleaved: each variant's n-th round is the same."""
    source = Trainer(base, lambda line: None)
    variants = {name: build(name, base, source) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cursor = source.order.start()
    for index in range(WARM_UP + num_rounds):
        batches, cursor = source.order.next_round(cursor)
        assembled = source.assemble(batches)
        for name, variant in variants.items():
            gc.collect()
            start = time.perf_counter()
            variant(assembled, index)
            if index >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> list[dict]:
    """Median and quartiles by variant, and how often the fast bf16 round fits into them."""
    ours = statistics.median(seconds["fast bf16"])
    rows = []
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(
            {
                "variant": name,
                "median": median,
                "low": low,
                "high": high,
                "ratio": statistics.median(values) / ours,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| variant | ms per round | quartiles | / fast bf16 |", "|---|---|---|---|"]
    for row in rows:
        median, low, high = (1e3 * row[key] for key in ("median", "low", "high"))
        lines.append(
            f"| {row['variant']} | {median:.0f} | {low:.0f} to {high:.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def machine() -> dict:
    """What the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="the task files; the sample if left out")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each variant")
    parser.add_argument("--variants", nargs="+", default=[*PEERS, *OURS], choices=[*PEERS, *OURS])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    base = load_config(RECIPE, {"data_dir": args.data_dir, "output": Path("runs/benchmark")})
    names = [n for n in args.variants if n != "fast bf16"] + ["fast bf16"]
    rows = summary(run(base, names, args.rounds))
    print(table(rows))
    if args.output:
        args.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


@pytest.mark.parametrize("name", ["hf fp32", "hf bf16", "reference fp32", "fast fp32", "fast bf16"])
def test_round(benchmark, name):
    base = load_config(RECIPE, {"output": Path("runs/benchmark")})
    source = Trainer(base, lambda line: None)
    variant = build(name, base, source)
    batches, _ = source.order.next_round(source.order.start())
    assembled = source.assemble(batches)
    benchmark.group = "SBRRT round, built-in sample"
    benchmark.pedantic(variant, (assembled, 0), rounds=7, warmup_rounds=2)


if __name__ == "__main__":
    main()
