"""``sbrrt-fast train``: one run from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import parse_run_config
from sbrrt_fast.training.evaluate import flatten_scores
from sbrrt_fast.training.trainer import Trainer


def main(argv: Sequence[str]) -> int:
    config = parse_run_config(argv, prog="sbrrt-fast train")
    print(_heading(config))
    metrics = Trainer(config).run()
    print(_table(config, metrics))
    return 0


def _heading(config: RunConfig) -> str:
    data = config.data_dir or "the built-in sample (made up; its scores are no results)"
    return f"{config.recipe}: {', '.join(config.tasks)} from {data}, seed {config.seed}"


def _table(config: RunConfig, metrics: dict) -> str:
    """Dev scores of the best model, a row per task."""
    rows = [(name, f"{value:.4f}") for name, value in flatten_scores(metrics["dev"]).items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    note = "" if config.data_dir else " (built-in sample)"
    return "\n".join(
        [
            f"dev scores of the best model, round {metrics['best_round']}{note}",
            *lines,
            f"{metrics['rounds']} rounds, {metrics['rounds_per_second']:.2f} rounds/s, "
            f"{metrics['precision']}; model and logs in {config.output}",
        ]
    )
