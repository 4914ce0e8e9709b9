"""The lowest part of the encoder that does not train: all along, or until its rounds have come.

With gradual unfreezing (Howard and Ruder, arXiv 1801.06146) heads and pooler train alone at first,
then one more layer from the top every so many rounds, and the embeddings last.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.model.height import height_of, num_layers


@dataclass(frozen=True)
class Resting:
    """What of an encoder does not train now.

    Attributes:
        num_heights: 0 if all trains, 1 if the embeddings rest, 1 + n if n layers do too.
        parameters: ids of those that rest.
    """

    num_heights: int = 0
    parameters: frozenset[int] = frozenset()

    @property
    def lowest_layer(self) -> int:
        """The lowest that trains; the number of layers if none does."""
        return max(0, self.num_heights - 1)


class Unfreezing:
    """Which part of a model rests in which round.

    Args:
        model: whose parameters. config: the optimiser's.

    Raises:
        ConfigError: layers are to rest, and the encoder has none.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self._every, self._fixed, self._num_layers = config.unfreeze_every, 0, 0
        named = list(model.named_parameters())
        self._heights = [(id(p), height_of(name)) for name, p in named]
        if config.frozen_layers:
            self._fixed = config.frozen_layers + 1
        if self._every:
            self._num_layers = num_layers((n for n, _ in named), "optimizer.unfreeze_every")
        self._resting: dict[int, Resting] = {}

    def at(self, done: int) -> Resting:
        """In the round after ``done`` rounds."""
        num = self._fixed
        if self._every:
            num = max(num, self._num_layers + 1 - done // self._every)
        if num not in self._resting:
            ids = (i for i, height in self._heights if height is not None and height < num)
            self._resting[num] = Resting(num, frozenset(ids))
        return self._resting[num]

    def late_line(self, num_rounds: int) -> str | None:
        """For the user, where a run of so many rounds ends before all trains; else None."""
        if self.at(num_rounds - 1).num_heights <= self._fixed:
            return None
        needed = self._every * (self._num_layers + 1 - self._fixed)
        return (
            f"optimizer.unfreeze_every {self._every}: the lowest part of the encoder does not "
            f"train in {num_rounds:,} rounds; it does after {needed:,}"
        )
