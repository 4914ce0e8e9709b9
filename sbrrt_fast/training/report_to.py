"""Services that follow a run: what ``report_to`` names, as callbacks."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import portable
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.training.callbacks import Callback, RunInfo
from sbrrt_fast.training.scores.table import flatten_scores

WANDB = "wandb"


def reporters(names: Sequence[str]) -> dict[str, Callback]:
    """A callback for each name of ``report_to``.

    Raises:
        ConfigError: what a name needs is not installed or is no callback, or it cannot be made.
    """
    return {name: _reporter(name) for name in names}


class Wandb(Callback):
    """Weights & Biases: settings, every logged value, dev scores, and the best ones as summary.

    Its variables hold, such as ``WANDB_MODE`` and ``WANDB_ENTITY``. ``WANDB_PROJECT`` is
    ``sbrrt_fast`` and ``WANDB_NAME`` the run's folder where they are not set. A run that is resumed
    goes on as the same run there.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self) -> None:
        self._wandb = _import_wandb()
        self._run: Any = None

    def on_start(self, run: RunInfo) -> None:
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sbrrt_fast"),
            name=os.environ.get("WANDB_NAME", run.config.output.name),
            id=run.id,
            resume="allow",
            config=config_to_dict(portable(run.config)),
        )

    def on_log(self, round: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=round)

    def on_evaluate(self, round: int, scores: Mapping[str, Any]) -> None:
        self._run.log(_flat("dev", scores), step=round)

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        best = _flat("best/dev", metrics["dev"]) | {"best/round": metrics["best_round"]}
        self._run.summary.update(best)
        self._run.finish()

    def on_stop(self, error: BaseException) -> None:
        if self._run is not None:
            self._run.finish(exit_code=getattr(error, "status", 1))


def _flat(prefix: str, scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{name}": score for name, score in flatten_scores(dict(scores)).items()}


def _import_wandb() -> ModuleType:
    with contextlib.suppress(ImportError):
        wandb = importlib.import_module(WANDB)
        if hasattr(wandb, "init"):  # a folder that wandb left here can be imported as well
            return wandb
    raise ConfigError(
        "report_to: wandb is not installed; `pip install wandb`, or leave it out of report_to"
    )


def _reporter(name: str) -> Callback:
    if name == WANDB:
        return Wandb()
    cls = _class_named(name)
    try:
        return cls()
    except Exception as error:
        raise ConfigError(
            f"report_to: {shown(name)} cannot be made without arguments ({type(error).__name__}: "
            f"{shown(error, 300)})"
        ) from error


def _class_named(name: str) -> type[Callback]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"report_to: {shown(module)} cannot be imported ({shown(error, 300)}); install it, or "
            "set PYTHONPATH=. where it is in this folder"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ConfigError(
            f"report_to: {shown(name)} is no subclass of sbrrt_fast.Callback in that module; "
            "correct the name"
        )
    return found
