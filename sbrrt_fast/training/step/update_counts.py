"""How often each parameter was updated, where the device decides whether an update is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class UpdateCounts:
    """Numbers of updates: the host counts those it sent, the device those that were left out.

    Parameters that were always updated together share a history, named by the first of them: an
    update that was left out was so for all of them, so one number on the device serves them.

    Args:
        num_parameters: how many there are; each is known by its place.
        device: where updates are left out.

    Attributes:
        sent: float32 [num_parameters], a numpy array: updates sent, less the settled ones.
        views: the same numbers as 0-dim tensors in the same memory, for the optimiser's state.
        histories: int64 [num_parameters], a numpy array.
    """

    def __init__(self, num_parameters: int, device: torch.device):
        counts = torch.zeros(num_parameters)
        self.sent, self.views = counts.numpy(), counts.unbind()
        self.histories = np.zeros(num_parameters, dtype=np.int64)
        self._left_out = torch.zeros(num_parameters, device=device)

    def tell_apart(self, places: Sequence[int]) -> None:
        """Splits the histories of which some, but not all, are updated when ``places`` are."""
        is_updated = np.zeros(len(self.sent), dtype=bool)
        is_updated[list(places)] = True
        for history in np.unique(self.histories):
            together = self.histories == history
            others = np.flatnonzero(together & (is_updated != is_updated[history]))
            if len(others):
                first = int(others[0])
                self.histories[others] = first
                self._left_out[first].copy_(self._left_out[int(history)])

    def are_alike(self, places: np.ndarray, history: int) -> bool:
        """Whether these were updated equally often and have this history."""
        counts, histories = self.sent[places], self.histories[places]
        return bool((counts == counts[0]).all() and (histories == history).all())

    def number(self, sent: Tensor, history: int) -> Tensor:
        """The number of an update from the number sent, float32 0-dim on the device."""
        return sent.to(torch.float32) - self._left_out[history]

    def leave_out(self, left_out: Tensor, histories: Iterable[int]) -> None:
        """Counts an update of these histories if the bool ``left_out`` on the device is set."""
        for history in histories:
            self._left_out[history].add_(left_out)

    def settle(self) -> None:
        """Takes the updates that were left out off ``sent``; waits for the device."""
        left_out = self._left_out.cpu().numpy()
        if left_out.any():
            self.sent -= left_out[self.histories]
            self._left_out.zero_()
