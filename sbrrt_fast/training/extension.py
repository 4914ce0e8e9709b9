"""More rounds for a finished run: what that needs, and when it is the longer run bit for bit.

Learning rates, the teacher's momentum and the annealed order of tasks may depend on how many rounds
a run has. Where those of the rounds done are also those of the longer run, ``--resume --epochs N``
gives what training N epochs at once gives. Else ``extend: exact`` refuses, and ``stretched`` goes
on with the schedules of the longer run from there, which ``extended`` in ``config.yaml`` records.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError, SbrrtError, WeightsError
from sbrrt_fast.smart.bregman import beta_at
from sbrrt_fast.training.averaging import first_averaged
from sbrrt_fast.training.early_stopping import Waiting
from sbrrt_fast.training.run_folder import CONFIG, STATE, is_finished
from sbrrt_fast.training.step.optimizer import learning_rate_factor

FINISHED = "finished"  # key in a state's meta: the run had come to its end
MAY_GROW = ("rounds", "epochs", "early_stopping.patience")


def check_fresh(config: RunConfig) -> None:
    """ConfigError for a new run with the settings of one that was extended with other schedules."""
    if config.extended and not config.resume:
        after = " and ".join(map(str, config.extended))
        raise ConfigError(
            f"extended: these are the settings of a run that was extended after round {after} "
            "with other schedules, which one run from the start does not repeat; train that many "
            "rounds and extend them, or remove 'extended'"
        )


def check_has_more(output: Path, config: RunConfig) -> None:
    """Looks whether a run that is resumed has anything left to do; reads its settings alone.

    Raises:
        SbrrtError: it is finished, and ``config`` does not make it longer.
        WeightsError: it is finished and kept no state to go on from.
    """
    if not is_finished(output):
        return
    if _growth(load_config(output / CONFIG)) == _growth(config):
        raise SbrrtError(
            f"{output}: this run is finished; there is nothing to resume. To extend it give more "
            "--epochs or --rounds, or more --early-stopping.patience if it was stopped early"
        )
    if not any(os.path.isdir(output / name) for name in (STATE, f"{STATE}.old")):
        raise WeightsError(
            f"{output}: this run is finished and kept no state, so it cannot be extended; train "
            "anew with --overwrite (log.keep_state and log.state_every say what is kept)"
        )


def is_extended(meta: Mapping[str, Any], started: RunConfig, now: RunConfig) -> bool:
    """Whether resuming from a state makes a finished run longer."""
    return bool(meta.get(FINISHED)) and _growth(started) != _growth(now)


def extended_config(
    started: RunConfig,
    now: RunConfig,
    *,
    done: int,
    rounds_per_epoch: int,
    waiting: Waiting,
    where: str,
) -> RunConfig:
    """``now`` with what it must record of the extension.

    Args:
        done: rounds that the finished run has trained.
        waiting: of early stopping, after them.
        where: the run, for messages.

    Raises:
        SbrrtError: nothing is left to do, or the run would not be the longer one from its start and
            ``extend`` is ``exact``.
    """
    patience, before = now.early_stopping.patience, started.early_stopping.patience
    if patience is not None and (before is None or patience < before):
        raise SbrrtError(
            f"{where}: was trained with early_stopping.patience {before}; an extended run may "
            f"have more, not {patience}"
        )
    first, last = (config.rounds or config.epochs * rounds_per_epoch for config in (started, now))
    if done >= last or waiting.is_over(now.early_stopping):
        why = f"{last} are asked for" if done >= last else "its patience is still at an end"
        raise SbrrtError(
            f"{where}: this run is finished after {done} rounds and {why}; there is nothing to "
            "resume"
        )
    reasons = differing_schedules(now, done, first, last, rounds_per_epoch)
    if reasons and now.extend == "exact":
        raise ConfigError(
            f"{where}: its {done} rounds are not the first of a run of {last}: "
            f"{' and '.join(reasons)} would have been others; --extend stretched goes on with "
            f"those of {last} rounds from here, --overwrite trains anew"
        )
    return replace(now, extended=(*now.extended, done)) if reasons else now


def extension_line(config: RunConfig, done: int, num_rounds: int) -> str:
    """For the user: what the rounds after ``done`` are."""
    how = "as in a run of that length from its start"
    if config.extended[-1:] == (done,):
        how = "with the schedules that a run of that length has there (extend: stretched)"
    return f"extended after round {done} to {num_rounds} rounds, {how}"


def differing_schedules(
    config: RunConfig, done: int, first: int, last: int, rounds_per_epoch: int
) -> list[str]:
    """What was not in the first ``done`` of ``first`` rounds as it is in those of ``last``."""
    if first == last:
        return []
    each = 1 if config.round.update == "joint" else len(config.trained_tasks)
    steps = range(1, done * each + 1)

    def differs(schedule: Callable, settings: OptimizerConfig | BregmanConfig) -> bool:
        pairs = ((schedule(s, n * each, settings) for n in (first, last)) for s in steps)
        return any(a != b for a, b in pairs)

    reasons = []
    if differs(learning_rate_factor, config.optimizer):
        reasons.append("learning rates (optimizer.decay, optimizer.warmup)")
    if config.bregman.weight > 0 and differs(beta_at, config.bregman):
        reasons.append("the teacher's momentum (bregman.schedule)")
    begins = {min(first_averaged(config.average, n), done + 1) for n in (first, last)}
    if config.average.weights != "none" and len(begins) > 1:
        reasons.append("what is averaged (average.start)")
    num_epochs = [-(-n // rounds_per_epoch) for n in (first, last)]
    if config.round.schedule == "annealed" and num_epochs[0] != num_epochs[1]:
        reasons.append("the drawing of tasks (round.schedule)")
    return reasons


def _growth(config: RunConfig) -> tuple:
    """The settings in which an extended run may differ from the finished one."""
    epochs = None if config.rounds else config.epochs
    return config.rounds, epochs, config.early_stopping.patience
