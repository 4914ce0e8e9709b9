"""What the processes of a run ask each other for.

Every rank draws the global round and computes its share of it, so between two rounds there is
nothing to tell; within one, gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor

Wait = Callable[[], object]


class Ranks(Protocol):
    """The processes of a run, as one of them sees them.

    Calls that involve the others must come in the same order on all of them.

    Attributes:
        rank: this one's number, from 0. size: how many there are.
        on_tick: called at every tick of several ranks.
    """

    rank: int
    size: int
    on_tick: Callable[[], object] | None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes, logs and shows progress."""

    def start_sum(self, x: Tensor) -> Wait:
        """Begins to put the sum over all ranks into ``x``, the same bits on each of them.

        ``x`` is contiguous and must not be touched until the result, called on the stream that goes
        on with it, has returned.
        """

    def sum(self, x: Tensor) -> Tensor:
        """``start_sum`` and its wait; returns ``x``."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON-serialisable ``value``, by rank, through the host's memory."""

    def start_flag(self, value: bool) -> Callable[[], bool]:
        """Begins to ask whether ``value`` is true on any rank; the result waits for the answer."""

    def together(self, what: str) -> AbstractContextManager[None]:
        """A block that ends for all ranks or for none: an SbrrtError within it on one rank is
        raised on every rank, once all of them have left the block.

        Args:
            what: they are about to do, such as "reading the data".
        """

    def watched(self, advice: str = "start it again") -> AbstractContextManager[None]:
        """A block in which this rank has to go on (``tick``), and whose error ends the others.

        Args:
            advice: what to do where another rank is gone.
        """

    def patient(self) -> AbstractContextManager[None]:
        """A block of work that may take long between two ticks, such as a download."""

    def tick(self, done: int | None = None) -> None:
        """This rank is alive and goes on; called between pieces of work of a few seconds.

        Args:
            done: rounds done, where a round has ended.
        """

    def close(self) -> None:
        """Leaves the others, once all of them have come here."""


class OneRank:
    """A run of one process."""

    rank, size, is_first = 0, 1, True
    on_tick: Callable[[], object] | None = None

    def start_sum(self, x: Tensor) -> Wait:
        return _nothing

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def start_flag(self, value: bool) -> Callable[[], bool]:
        return lambda: value

    def together(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()

    def watched(self, advice: str = "start it again") -> AbstractContextManager[None]:
        return nullcontext()

    def patient(self) -> AbstractContextManager[None]:
        return nullcontext()

    def tick(self, done: int | None = None) -> None:
        pass

    def close(self) -> None:
        pass


def _nothing() -> None:
    pass


ONE_RANK = OneRank()


@contextmanager
def first_alone(ranks: Ranks, what: str) -> Iterator[bool]:
    """A block in which the first rank alone does something; the others wait for its end.

    Yields whether this rank is the one; an SbrrtError of its is raised on all.
    """
    with ranks.together(what):
        yield ranks.is_first
