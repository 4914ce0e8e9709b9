"""How often each parameter was updated, where the device decides whether an update is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class UpdateCounts:
    """Numbers of updates: the host counts those it sent, the device those that were skipped.

    Parameters that were always updated together share a history, named by the first of them: a
    skipped update was skipped for all of them, so one number on the device serves them.

    Args:
        num_parameters: how many there are; each is known by its index.
        device: where updates are skipped.

    Attributes:
        sent: float32 [num_parameters], a numpy array: updates sent, less the settled ones.
        views: the same numbers as 0-dim tensors in the same memory, for the optimiser's state.
        histories: int64 [num_parameters], a numpy array.
    """

    def __init__(self, num_parameters: int, device: torch.device):
        counts = torch.zeros(num_parameters)
        self.sent, self.views = counts.numpy(), counts.unbind()
        self.histories = np.zeros(num_parameters, dtype=np.int64)
        self._skipped = torch.zeros(num_parameters, device=device)

    def split_histories(self, indices: Sequence[int]) -> None:
        """Splits the histories of which some, but not all, are updated when ``indices`` are."""
        is_updated = np.zeros(len(self.sent), dtype=bool)
        is_updated[list(indices)] = True
        for history in np.unique(self.histories):
            together = self.histories == history
            others = np.flatnonzero(together & (is_updated != is_updated[history]))
            if len(others):
                first = int(others[0])
                self.histories[others] = first
                self._skipped[first].copy_(self._skipped[int(history)])

    def same_step(self, indices: np.ndarray, history: int) -> bool:
        """Whether these have one number of updates and this history."""
        counts, histories = self.sent[indices], self.histories[indices]
        return bool((counts == counts[0]).all() and (histories == history).all())

    def number(self, sent: Tensor, history: int) -> Tensor:
        """The number of an update from the number sent, float32 0-dim on the device."""
        return sent.to(torch.float32) - self._skipped[history]

    def skip(self, skipped: Tensor, histories: Iterable[int]) -> None:
        """Counts an update of these histories if the bool ``skipped`` on the device is set."""
        for history in histories:
            self._skipped[history].add_(skipped)

    def settle(self) -> None:
        """Takes the skipped updates off ``sent``; waits for the device."""
        skipped = self._skipped.cpu().numpy()
        if skipped.any():
            self.sent -= skipped[self.histories]
            self._skipped.zero_()
