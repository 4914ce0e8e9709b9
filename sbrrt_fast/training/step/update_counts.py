"""How often each parameter was updated: numbers that the device keeps, since it skips updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbrrt_fast.data.transfer import to_device


class UpdateCounts:
    """Numbers of updates made, of every parameter and of all together.

    Args:
        num_parameters: how many there are; each is known by its index.
        device: of the parameters.

    Attributes:
        of_parameters: float32 [num_parameters], on the device; exact up to 2^24.
        views: the same numbers, 0-dim each in the same memory, for the optimiser's state.
    """

    def __init__(self, num_parameters: int, device: torch.device):
        self._counts = torch.zeros(num_parameters + 1, device=device)
        self.of_parameters = self._counts[:-1]
        self.views = self.of_parameters.unbind()
        self._num_sent = 0

    def ones_of(self, indices: Sequence[int]) -> Tensor:
        """What ``add`` takes for an update of these parameters; waits for nothing."""
        is_updated = torch.zeros(len(self._counts))
        is_updated[[*indices, -1]] = 1.0
        return to_device(is_updated, self._counts.device)

    def send(self) -> None:
        """The host sends an update, which the device may skip."""
        self._num_sent += 1

    def add(self, ones: Tensor, is_made: Tensor) -> None:
        """Counts an update on the device.

        Args:
            ones: see ``ones_of``. is_made: float32, 0-dim, 1 or 0 for an update that is skipped.
        """
        self._counts.addcmul_(ones, is_made)

    def take_num_skipped(self) -> int:
        """How many of the updates sent since the last call were skipped; waits for the device."""
        skipped = self._num_sent - int(self._counts[-1].item())
        self._counts[-1].zero_()
        self._num_sent = 0
        return skipped
