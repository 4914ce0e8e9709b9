"""The saved state of a run that is resumed, and whether it is that of the run at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sbrrt_fast.checksums import check_directory, readable_directory
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import config_from_dict
from sbrrt_fast.training.checkpoint import load_state
from sbrrt_fast.training.early_stopping import Waiting
from sbrrt_fast.training.extension import MAY_GROW, extended_config, is_extended
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.kept_models import check_models
from sbrrt_fast.training.progress import check_same_inputs, check_same_run
from sbrrt_fast.training.run_folder import BEST, LAST, STATE


@dataclass(frozen=True)
class SavedState:
    """A run's state as it was read.

    Attributes:
        output: folder of the run.
        tensors, meta: see ``checkpoint.save_state``.
        config: that the run was started with.
    """

    output: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    config: RunConfig

    @classmethod
    def read(cls, output: Path) -> SavedState:
        """The state in a run's folder. WeightsError if there is none, or it is damaged."""
        tensors, meta = load_state(output / STATE)
        check_loaded(tensors, output / STATE, "it cannot be resumed: train anew")
        config = config_from_dict(meta["config"], str(output / STATE))
        return cls(output, tensors, meta, config)

    def is_extended_by(self, config: RunConfig) -> bool:
        """Whether it is that of a finished run which ``config`` makes longer."""
        return is_extended(self.meta, self.config, config)

    def check(self, config: RunConfig, inputs: Mapping[str, int]) -> None:
        """Holds settings, inputs and saved models against what the run was started with.

        Args:
            inputs: see ``progress.input_checksums``.

        Raises:
            SbrrtError: a setting or an input differs.
            WeightsError: a saved model is missing or damaged.
        """
        may_grow = MAY_GROW if self.is_extended_by(config) else ()
        check_same_run(self.config, config, str(self.output), may_grow)
        check_same_inputs(self.meta["inputs"], inputs, str(self.output))
        if self.meta["best"] is not None:
            for name in (BEST, LAST):
                check_directory(readable_directory(self.output / name))
        check_models(self.output, self.meta["cursor"]["round"])

    def extended(self, config: RunConfig, rounds_per_epoch: int, waiting: Waiting) -> RunConfig:
        """The settings of the longer run; see ``extension.extended_config`` for what it raises."""
        return extended_config(
            self.config,
            config,
            done=self.meta["cursor"]["round"],
            rounds_per_epoch=rounds_per_epoch,
            waiting=waiting,
            where=str(self.output),
        )

    def recorded(self, config: RunConfig) -> RunConfig:
        """The settings it was started with, as the longer run ``config`` leaves them."""
        names = ("rounds", "epochs", "early_stopping", "extended")
        return replace(self.config, **{name: getattr(config, name) for name in names})
