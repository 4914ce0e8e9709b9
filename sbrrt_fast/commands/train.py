"""``sbrrt-fast train``: one run from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_cli import flag_value, parse_cli, parse_run_config, split_config_flag
from sbrrt_fast.config_help import help_topic
from sbrrt_fast.config_io import load_config
from sbrrt_fast.data.sources import describe_data, uses_sample
from sbrrt_fast.training.ranks.start import prepare
from sbrrt_fast.training.run_folder import CONFIG, check_output, is_run
from sbrrt_fast.training.scores.table import exposure_note, score_table, untrained_note
from sbrrt_fast.training.trainer import Trainer

PROG = "sbrrt-fast train"


def main(argv: Sequence[str]) -> int:
    is_resumed = "--resume" in argv and help_topic(argv) is None
    config = _resumed_config(argv) if is_resumed else parse_run_config(argv, PROG)
    ranks, config, metrics = prepare(config)
    if ranks.is_first:
        print(_heading(config))
    metrics = metrics or Trainer(config).run()
    if ranks.is_first:
        print(_summary(config, metrics))
    return 0


def _resumed_config(argv: Sequence[str]) -> RunConfig:
    """The run's own settings, unless ``--config`` gives them, with flags over them.

    Where ``--config`` is the config.yaml of a run and ``--output`` is not given, that run is meant.
    """
    path, flags = split_config_flag(argv)
    output = Path(flag_value("--output", flags) or RunConfig().output)
    if path is not None and flag_value("--output", flags) is None and is_run(path.parent):
        output = path.parent
    if path is None:
        check_output(output, resume=True)
        path = output / CONFIG
    return parse_cli(flags, replace(load_config(path), output=output), PROG)


def _heading(config: RunConfig) -> str:
    data = describe_data(config.tasks, config.data_dir)
    data = data or "the built-in sample (made up; its scores are no results)"
    return f"{config.recipe}: {', '.join(config.tasks)} from {data}, seed {config.seed}"


def _summary(config: RunConfig, metrics: dict) -> str:
    """Dev scores of the best model, and where it is."""
    lines = [
        *_score_lines(config, metrics),
        f"{metrics['rounds']} rounds, {metrics['rounds_per_second']:.2f} rounds/s, "
        f"{metrics['precision']}; model and logs in {config.output}",
    ]
    return "\n".join(line for line in lines if line)


def _score_lines(config: RunConfig, metrics: dict) -> list[str]:
    done, is_sample = metrics["best_round"], uses_sample(config.tasks, config.data_dir)
    if len(metrics["dev"]) == 1:  # overall alone, and that of no evaluation
        command = f"sbrrt-fast evaluate {config.output}"
        return [f"no model was scored; `{command}` scores that of round {done}"]
    rows = ""
    if config.skip_final_evaluation and config.log.dev_rows is not None:
        rows = f", on {config.log.dev_rows:,} dev rows of each task at most"
    sample = " (built-in sample)" if is_sample else ""
    heading = f"dev scores of the best model, round {done}{rows}{sample}"
    table = score_table(metrics["dev"], intervals=metrics.get("intervals"))
    return [heading, table, untrained_note(config.tasks), exposure_note(config)]
