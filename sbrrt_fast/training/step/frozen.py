"""The memory and settings that a captured update depends on, and whether a run still has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Frozen:
    """The memory of weights, averages and moments, and the optimiser's settings, as they are now.

    Args:
        optimizer: with moments for ``updated``.
        weights: all parameters and averages, in whose place other memory may come.
        updated: the parameters whose moments are used.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        weights: Sequence[Tensor],
        updated: Sequence[nn.Parameter],
    ):
        self._optimizer, self._addresses_of = optimizer, [x.data_ptr for x in weights]
        self._addresses, self._settings = self._places(), self._groups()
        states = ((p, optimizer.state[p]) for p in updated)
        self._moments = [(p, state["exp_avg"], state["exp_avg_sq"]) for p, state in states]

    def holds(self) -> bool:
        """Whether none of it was replaced; tensors may have changed in place."""
        state = self._optimizer.state
        return (
            self._places() == self._addresses
            and all(
                state[p]["exp_avg"] is mean and state[p]["exp_avg_sq"] is square
                for p, mean, square in self._moments
            )
            and self._groups() == self._settings
        )

    def _places(self) -> list[int]:
        return [address() for address in self._addresses_of]

    def _groups(self) -> list[tuple]:
        groups = self._optimizer.param_groups
        return [(group["weight_decay"], group["betas"], group["eps"]) for group in groups]
