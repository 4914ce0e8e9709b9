"""``sbrrt-fast pretrain``: further pre-training of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sbrrt_fast.commands.pretrain_arguments import PretrainArguments, parse_pretrain_config
from sbrrt_fast.data.sources import describe_data
from sbrrt_fast.pretraining.config import PretrainConfig
from sbrrt_fast.pretraining.trainer import PretrainTrainer, scores_line
from sbrrt_fast.training.run_folder import LAST

__all__ = ["PretrainArguments", "main"]


def main(argv: Sequence[str]) -> int:
    config = parse_pretrain_config(argv)
    if config.tasks or config.text:
        print(_heading(config))
    print(_summary(config, PretrainTrainer(config).run()))
    return 0


def _heading(config: PretrainConfig) -> str:
    if config.text:
        source = ", ".join(map(str, config.text))
    else:
        data = describe_data(config.tasks, config.data_dir) or "the built-in sample"
        source = f"{', '.join(config.tasks)} ({', '.join(config.splits)}) from {data}"
    losses = "masked words and next sentences" if config.next_sentence else "masked words"
    return f"pretrain: {losses} of {source}, seed {config.seed}"


def _summary(config: PretrainConfig, metrics: dict[str, Any]) -> str:
    lines = [] if metrics["held_out"] is None else [scores_line(metrics["held_out"])]
    lines += [
        f"{metrics['rounds']} rounds, {metrics['rounds_per_second']:.2f} rounds/s, "
        f"{metrics['tokens_per_second']:,.0f} tokens/s, {metrics['precision']}",
        f"checkpoint: {config.output / LAST}, for `sbrrt-fast train --backbone`",
    ]
    return "\n".join(lines)
