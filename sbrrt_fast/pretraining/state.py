"""How far a pre-training run has come, and the state that it saves to go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.config_fields import config_leaves, config_to_dict
from sbrrt_fast.pretraining.config import (
    MAY_DIFFER,
    PretrainConfig,
    portable_pretrain,
    pretrain_config_from_dict,
)
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.training.checkpoint import load_state, save_state
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.progress import (
    check_resumed_settings,
    check_same_inputs,
    restore_tensors,
    trained_tensors,
)
from sbrrt_fast.training.round_robin import Cursor
from sbrrt_fast.training.run_folder import STATE

_INTERVAL = "interval."


@dataclass
class PretrainProgress:
    """The part of a run's state that changes every round, besides weights and optimiser.

    Attributes:
        cursor: rounds done and batches taken.
        interval: loss terms since the last logged line.
        seconds, num_tokens: of training, up to the last logged line.
        num_skipped: updates skipped since the last logged line, as far as they were counted.
        evaluation_is_due: the model after these rounds is to be evaluated and saved.
        first, last: scores on held-out text before the first round, and the last ones.
    """

    cursor: Cursor
    interval: IntervalMeans = field(default_factory=IntervalMeans)
    seconds: float = 0.0
    num_tokens: float = 0.0
    num_skipped: int = 0
    evaluation_is_due: bool = True
    first: dict[str, float] | None = None
    last: dict[str, float] | None = None

    def to_meta(self) -> dict[str, Any]:
        """As JSON values, but for the interval's sums."""
        names = ("seconds", "num_tokens", "num_skipped", "evaluation_is_due", "first", "last")
        values = {name: getattr(self, name) for name in names}
        return values | {"cursor": self.cursor.to_dict(), "interval": self.interval.to_meta()}

    @classmethod
    def restored(
        cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], cursor: Cursor, device
    ) -> PretrainProgress:
        """The progress that a state has."""
        sums = {
            name.removeprefix(_INTERVAL): x.to(device)
            for name, x in tensors.items()
            if name.startswith(_INTERVAL)
        }
        interval = IntervalMeans.restored(sums, meta["interval"])
        others = {k: v for k, v in meta.items() if k not in ("cursor", "interval")}
        return cls(cursor, interval, **others)


@dataclass
class PretrainState:
    """All that a run trains.

    Attributes:
        output: folder of the run. model, optimizer: what is trained.
        inputs: checksums of what no round changes, by a name for messages.
    """

    output: Path
    model: PretrainingModel
    optimizer: torch.optim.Optimizer
    inputs: dict[str, int]

    def save(self, config: PretrainConfig, progress: PretrainProgress) -> None:
        """Replaces the run's state. OutputError if it cannot be written."""
        tensors = trained_tensors(self.model, self.optimizer, None)
        sums = {f"{_INTERVAL}{name}": x for name, x in progress.interval.tensors().items()}
        meta = {
            "config": config_to_dict(portable_pretrain(config)),
            "inputs": self.inputs,
            "progress": progress.to_meta(),
        }
        save_state(self.output / STATE, tensors=tensors | sums, meta=meta)

    def restore(self, config: PretrainConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Takes over the saved state; its tensors, and the meta of its progress.

        Raises:
            WeightsError: there is no state, or it is damaged.
            SbrrtError: settings or text are not what the run was started with.
        """
        tensors, meta = load_state(self.output / STATE)
        check_loaded(tensors, self.output / STATE, "it cannot be resumed: train anew")
        started = pretrain_config_from_dict(meta["config"], str(self.output / STATE))
        leaves = (config_leaves(portable_pretrain(c)) for c in (started, config))
        check_resumed_settings(*leaves, str(self.output), MAY_DIFFER)
        check_same_inputs(meta["inputs"], self.inputs, str(self.output))
        restore_tensors(tensors, self.model, self.optimizer, None)
        return tensors, meta["progress"]
