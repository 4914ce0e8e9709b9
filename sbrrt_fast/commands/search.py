"""``sbrrt-fast search``: the settings of a recipe with the best dev score."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_cli import parse_cli, split_config_flag
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError

if TYPE_CHECKING:
    from sbrrt_fast.experiments.search.loop import Search
    from sbrrt_fast.experiments.search.space import Space

PROG = "sbrrt-fast search"
_NUM_TRIALS = 20


@dataclass(frozen=True)
class SearchOptions:
    """Look for the settings with the best dev score, with Optuna.

    The same command goes on where it stopped, and may be started several times at once on one
    folder. --config FILE and further flags are those of ``sbrrt-fast train`` and hold for every
    trial, such as --rounds 200 or --log.evaluate-every 50.

    Attributes:
        space: YAML file of the settings to vary, each with values, or with low and high.
        output: folder of the search.
        trials: number of trials, those of earlier calls included; 20, or the whole grid, if not
            given.
        timeout: minutes after which this call begins no more trial.
        sampler: tpe learns from earlier trials, random does not, grid takes every combination.
        pruner: ends trials whose dev curve is worse than that of others: median, halving,
            hyperband, or none.
        metric: dev score to look for, overall or one such as sst/accuracy.
        seeds: runs per trial, whose mean counts; their seeds are --seed and those that follow it.
        keep_models: keep the weights of all trials, not only the best one's.
    """

    space: Path
    output: Path = Path("runs/search")
    trials: int | None = None
    timeout: float | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["median", "halving", "hyperband", "none"] = "median"
    metric: str = "overall"
    seeds: int = 1
    keep_models: bool = False


def main(argv: Sequence[str]) -> int:
    path, flags = split_config_flag(argv)
    options, flags = parse_arguments(SearchOptions, flags, PROG, return_unknown_args=True)
    _check(options)
    base = _base(parse_cli(flags, load_config(path), PROG))
    from sbrrt_fast.experiments.search.space_file import SpaceError, read_space

    try:
        space = read_space(options.space, base, options.sampler == "grid")
    except SpaceError as error:
        for mistake in error.mistakes:
            print(f"{PROG}: {mistake}", file=sys.stderr)
        return 2
    search = _search(options, base, space)
    if options.pruner != "none" and _is_scored_once(base):
        print("every run is scored once, so none is pruned; --log.evaluate-every scores more often")
    search.run()
    print(_summary(search))
    return int(search.shared.best is None)


def _check(options: SearchOptions) -> None:
    """ConfigError for what cannot be used, and where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("needs the library optuna; run `pip install 'sbrrt_fast[search]'`")
    for name in ("trials", "seeds"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise ConfigError(f"--{name}: must be at least 1, got {count}")
    minutes = options.timeout
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"--timeout: must be minutes above 0, got {minutes}")


def _base(config: RunConfig) -> RunConfig:
    """ConfigError where a setting is given that the search itself decides."""
    for name in ("resume", "overwrite"):
        if getattr(config, name):
            raise ConfigError(
                f"{name}: a search goes on by itself with the same command; leave it out, and "
                "choose another --output to start anew"
            )
    return replace(config, extended=())


def _search(options: SearchOptions, base: RunConfig, space: Space) -> Search:
    from sbrrt_fast.experiments.search.loop import Search
    from sbrrt_fast.experiments.search.objective import Objective
    from sbrrt_fast.experiments.search.plan import Plan

    objective = Objective(options.metric)
    objective.check(base)
    plan = Plan(
        *(base, space, objective, options.sampler, options.pruner, options.seeds),
        *(options.output, options.keep_models),
    )
    whole = space.grid_size() if options.sampler == "grid" else _NUM_TRIALS
    num_trials = options.trials or whole
    if options.sampler == "grid" and num_trials > whole:
        raise ConfigError(f"--trials: the grid has {whole} combinations; give at most as many")
    return Search(plan, num_trials, options.timeout)


def _is_scored_once(base: RunConfig) -> bool:
    every = base.log.evaluate_every
    if every is None:
        return base.rounds is None and base.epochs == 1
    return base.rounds is not None and every >= base.rounds


def _summary(search: Search) -> str:
    from sbrrt_fast.experiments.search.loop import best_text, settings_text
    from sbrrt_fast.experiments.search.results import RECIPE, counted

    shared, folder = search.shared, search.plan.folder
    if (best := shared.best) is None:
        return f"{counted(shared.trials)}; none is finished; tables in {folder}"
    settings = search.plan.space.values(best.params)
    return "\n".join(
        [
            f"{counted(shared.trials)}; {best_text(best)}: {settings_text(settings)}",
            f"train it with `sbrrt-fast train --config {folder / RECIPE}`; tables and figure in "
            f"{folder}",
        ]
    )
