"""What all ranks must know alike, although each of them could find something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sbrrt_fast.training.ranks.ranks import Ranks, first_alone

T = TypeVar("T")


def from_first(ranks: Ranks, what: str, compute: Callable[[], T]) -> T:
    """What ``compute`` gives the first rank, on all of them.

    Args:
        what: the first rank is about to do, for messages.
        compute: gives a JSON-serialisable value; an SbrrtError of its is raised on all ranks.
    """
    with first_alone(ranks, what) as is_first:
        value = compute() if is_first else None
    return ranks.gather(value)[0]
