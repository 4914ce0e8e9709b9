"""A search as its command asks for it, and the folder that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves, config_to_dict
from sbrrt_fast.config_io import CALL_FIELDS, config_from_dict, config_with, portable
from sbrrt_fast.errors import OutputError, SbrrtError
from sbrrt_fast.experiments.search.objective import Objective
from sbrrt_fast.experiments.search.space import Space
from sbrrt_fast.files import write_json, writing

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "hyperband", "none"]
PLAN, STUDY, TRIALS, LOCK = "search.json", "study.db", "trials", ".lock"
_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What a search is; a folder holds one, and the same one whenever it goes on.

    Attributes:
        base: settings of all trials, without those of the space; ``seed`` is the first run's.
        seeds: runs of a trial.
        folder: of the search.
        keeps_models: whether the weights of all trials stay, not only the best one's.
    """

    base: RunConfig
    space: Space
    objective: Objective
    sampler: Sampler
    pruner: Pruner
    seeds: int
    folder: Path
    keeps_models: bool = False

    def trial_folder(self, number: int) -> Path:
        """Of a trial by its number, which counts from 1."""
        return self.folder / TRIALS / f"{number:04d}"

    def recipe(self, settings: Mapping[str, Any]) -> RunConfig:
        """The settings of a trial as a recipe. ConfigError where they do not fit together."""
        return config_with(self.base, settings, "the trial's settings") if settings else self.base

    def runs(self, number: int, settings: Mapping[str, Any]) -> list[RunConfig]:
        """A trial's runs, one per seed. ConfigError as of ``recipe``."""
        config = self.recipe(settings)
        log = replace(config.log, keep_state=False)  # a trial is not extended
        folder, first = self.trial_folder(number), config.seed
        return [
            replace(config, log=log, seed=seed, output=folder / f"seed{seed}")
            for seed in range(first, first + self.seeds)
        ]

    def to_dict(self) -> dict[str, Any]:
        """What makes it this search, as JSON values."""
        return {
            "base": config_to_dict(portable(self.base)),
            "space": self.space.to_dict(),
            "metric": self.objective.name,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seeds": self.seeds,
        }


def check_folder(plan: Plan) -> None:
    """Looks whether the plan's folder can be taken; changes nothing.

    Raises:
        OutputError: it is no folder, or holds other things than a search.
        SbrrtError: it holds another search.
    """
    folder = plan.folder
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; give --output a folder")
    if (recorded := _recorded(folder)) is not None:
        _check_same(plan, recorded)
        return
    with writing(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if names := [name for name in names if name != LOCK and not name.startswith(f"{PLAN}.tmp-")]:
        raise OutputError(
            f"{folder}: is not empty and not the folder of a search (it holds {names[0]}); choose "
            "another --output"
        )


def record(plan: Plan) -> None:
    """Makes a folder the plan's, if it is not yet."""
    if _recorded(plan.folder) is None:
        head = {"made_by": "sbrrt_fast", "format": _FORMAT}
        write_json(plan.folder / PLAN, {**head, **plan.to_dict()})


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What a folder's search was started with; None where it holds none of ours."""
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == _FORMAT else None


def _check_same(plan: Plan, recorded: Mapping[str, Any]) -> None:
    before, now = _leaves(recorded), _leaves(plan.to_dict())
    keys = [k for k in dict.fromkeys([*before, *now]) if before.get(k) != now.get(k)]
    if keys:
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise SbrrtError(
            f"{plan.folder}: holds a search with {keys[0]} {before.get(keys[0])!r}, now it is "
            f"{now.get(keys[0])!r}{more}; go on with the settings that it was started with, or "
            "choose another --output"
        )


def _leaves(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's own words and, by dotted key, its space and its settings."""
    base = config_leaves(config_from_dict(recorded["base"], PLAN))
    space = {f"the space's {key}": value for key, value in recorded["space"].items()}
    words = {k: v for k, v in recorded.items() if k in ("metric", "sampler", "pruner", "seeds")}
    return words | space | {k: v for k, v in base.items() if k not in CALL_FIELDS}
