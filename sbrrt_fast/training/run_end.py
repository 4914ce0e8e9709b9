"""What a run says when its rounds are done: lines for the user, and its ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.training.cost.profile import Profile, RunProfile
from sbrrt_fast.training.environment import run_environment
from sbrrt_fast.training.log_summary import SkippedUpdates, skipped_updates
from sbrrt_fast.training.logging import LINES, SKIPPED
from sbrrt_fast.training.progress import Progress
from sbrrt_fast.training.run_facts import run_facts, train_data
from sbrrt_fast.training.scores.intervals import intervals_of
from sbrrt_fast.training.scores.rows import write_run_rows
from sbrrt_fast.training.scores.scored import ScoredTask
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.step import Step


@dataclass
class RunEnd:
    """A run whose rounds are done, on the rank that writes.

    Attributes:
        config: the run's. model, step: as they were trained.
        run_profile: of its rounds; None without ``--profile``.
        progress: its own. num_rounds: that it was to have. num_ranks: that trained it.
        train_tasks: the rows that it was trained on, by task.
        other_cores: of ``OtherWork``; None of a run that was resumed.
    """

    config: RunConfig
    model: MultiTaskModel
    step: Step | CapturedStep
    run_profile: RunProfile | None
    progress: Progress
    num_rounds: int
    num_ranks: int
    train_tasks: Mapping[str, TokenizedTask]
    other_cores: float | None = None

    def lines(self) -> list[str]:
        """On its step, skipped updates, learnt weights and the profile."""
        lines = [*self.step.summary(), *self._skipped().lines(self.progress.cursor.round)]
        if variances := self._log_variances:
            of_tasks = ", ".join(f"{name} {s:+.3f}" for name, s in variances.items())
            lines.append(f"log variances of the tasks, whose weights are exp(-s): {of_tasks}")
        return lines + (self._profile.lines() if self._profile else [])

    def metrics(
        self, dev: dict[str, Any], rows: Mapping[str, ScoredTask], device: torch.device
    ) -> dict[str, Any]:
        """The contents of ``metrics.json``; writes the rows of the best model.

        Args:
            dev: scores of the best model. rows: its predictions by task. device: of the run.
        """
        write_run_rows(self.config.output, rows.values())
        smart = resolve(self.config.smart)
        return {
            "dev": dev,
            "intervals": intervals_of(rows),
            **run_facts(self.config, self.progress, self.num_rounds, smart),
            SKIPPED: self._skipped().num_skipped,
            "train_data": train_data(self.train_tasks),
            "log_variances": self._log_variances or None,
            "environment": run_environment(device, self.num_ranks, self.other_cores),
            "profile": self._profile and self._profile.to_dict(),
        }

    @cached_property
    def _log_variances(self) -> dict[str, float]:
        """By task, after the last round; none where weights are fixed."""
        return {name: s.item() for name, s in self.model.log_variances().items()}

    @cached_property
    def _profile(self) -> Profile | None:
        profile = self.run_profile
        return profile and profile.measure(self.model, self.config, self.step.memory())

    def _skipped(self) -> SkippedUpdates:
        per_round = self.step.num_steps // self.num_rounds
        return skipped_updates(self.config.output / LINES, per_round)
