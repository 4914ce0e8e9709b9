"""What a run saves to go on from, held to be the same on all its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import portable
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.averaging import RunAverage
from sbrrt_fast.training.checkpoint import save_state
from sbrrt_fast.training.extension import FINISHED
from sbrrt_fast.training.finite import check_trained
from sbrrt_fast.training.progress import (
    Progress,
    input_checksums,
    num_bytes_saved,
    restore_tensors,
    state_tensors,
    trained_tensors,
)
from sbrrt_fast.training.ranks.alike import check_same_inputs, check_same_tensors, settings_of_run
from sbrrt_fast.training.ranks.ranks import Ranks
from sbrrt_fast.training.resuming import SavedState
from sbrrt_fast.training.run_folder import STATE


@dataclass
class RunState:
    """All that a run trains.

    Attributes:
        ranks: that train it. model, teacher, optimizer, average: of this one.
        splits: its tasks by split and name.
    """

    ranks: Ranks
    model: MultiTaskModel
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    average: RunAverage
    splits: Mapping[str, Mapping[str, TokenizedTask]]

    @cached_property
    def inputs(self) -> dict[str, int]:
        """Checksums of what no round changes."""
        return input_checksums(self.model, self.splits)

    def num_bytes(self, num_kept: int) -> int:
        """The most that the run saves; see ``progress.num_bytes_saved``."""
        return num_bytes_saved(self.model, self.teacher, self.average, num_kept)

    def check_same_start(self, config: RunConfig, done: int) -> None:
        """SbrrtError where ranks differ in settings, inputs or weights before the first round."""
        if self.ranks.size > 1:
            check_same_inputs(self.ranks, settings_of_run(config) | self.inputs)
            self.check_same(done)

    def check_same(self, done: int) -> None:
        """SbrrtError where ranks differ in what they have trained after ``done`` rounds."""
        if self.ranks.size > 1:
            tensors = trained_tensors(self.model, self.optimizer, self.teacher, self.average)
            check_same_tensors(self.ranks, tensors, done)

    def save(self, config: RunConfig, progress: Progress, is_finished: bool) -> None:
        """Writes the state into the run's folder, on the first rank; all look whether it is finite.

        Args:
            config: the run's. is_finished: whether it has come to its end.
        """
        trained = self.model, self.optimizer, self.teacher, self.average
        tensors = state_tensors(*trained, progress)
        check_trained(tensors, progress.cursor.round)
        if not self.ranks.is_first:
            return
        meta: dict[str, Any] = progress.to_meta()
        meta |= {"config": config_to_dict(portable(config)), "inputs": self.inputs}
        meta[FINISHED] = is_finished
        save_state(config.output / STATE, tensors=tensors, meta=meta)

    def restore(self, config: RunConfig, saved: SavedState) -> None:
        """Takes over what was saved, once it is known to be that of the run ``config``."""
        saved.check(config, self.inputs)
        trained = self.model, self.optimizer, self.teacher, self.average
        restore_tensors(saved.tensors, *trained)
