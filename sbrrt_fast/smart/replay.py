"""The same dropout masks in every evaluation of a model: torch's random numbers, drawn again.

A model in ``train()`` draws its masks from torch's generators. Put back to where they were before
the clean pass, they give the same masks again, layer by layer. Gradient checkpointing remembers the
state of its own forward, so recomputed layers have them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomState:
    """Where torch's generators are: the CPU's and, once CUDA is in use, each device's.

    Reading it copies a few kilobytes in the host's memory; no device waits.
    """

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = [g.get_state() for g in _cuda_generators()]

    def restore(self) -> None:
        """Puts the generators back."""
        torch.set_rng_state(self._cpu)
        for generator, state in zip(_cuda_generators(), self._cuda, strict=False):
            generator.set_state(state)

    def has_moved(self) -> bool:
        """Whether anything has been drawn since."""
        now = RandomState()
        pairs = zip(self._states(), now._states(), strict=False)
        return any(not torch.equal(before, after) for before, after in pairs)

    def _states(self) -> list[Tensor]:
        return [self._cpu, *self._cuda]


@contextmanager
def replayed(state: RandomState | None) -> Iterator[None]:
    """Draws inside begin at ``state``; afterwards the generators are where they were before.

    None leaves the generators alone.
    """
    if state is None:
        yield
        return
    before = RandomState()
    state.restore()
    try:
        yield
    finally:
        before.restore()


@contextmanager
def nothing_drawn(message: str) -> Iterator[None]:
    """ValueError with this message if random numbers were drawn inside."""
    before = RandomState()
    yield
    if before.has_moved():
        raise ValueError(message)


def _cuda_generators() -> tuple[torch.Generator, ...]:
    return torch.cuda.default_generators if torch.cuda.is_initialized() else ()
