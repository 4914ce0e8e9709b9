"""``sbrrt-fast train``: one run from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import parse_run_config
from sbrrt_fast.training.scores import exposure_note, score_table
from sbrrt_fast.training.trainer import Trainer


def main(argv: Sequence[str]) -> int:
    config = parse_run_config(argv, prog="sbrrt-fast train")
    print(_heading(config))
    print(_summary(config, Trainer(config).run()))
    return 0


def _heading(config: RunConfig) -> str:
    data = config.data_dir or "the built-in sample (made up; its scores are no results)"
    return f"{config.recipe}: {', '.join(config.tasks)} from {data}, seed {config.seed}"


def _summary(config: RunConfig, metrics: dict) -> str:
    """Dev scores of the best model, and where it is."""
    sample = "" if config.data_dir else " (built-in sample)"
    lines = [
        f"dev scores of the best model, round {metrics['best_round']}{sample}",
        score_table(metrics["dev"]),
        exposure_note(config),
        f"{metrics['rounds']} rounds, {metrics['rounds_per_second']:.2f} rounds/s, "
        f"{metrics['precision']}; model and logs in {config.output}",
    ]
    return "\n".join(line for line in lines if line)
