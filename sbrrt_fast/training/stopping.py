"""SIGTERM and Ctrl-C: the round at hand is ended, a state is saved, then the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FrameType

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_SAME_SIGNAL = 5.0  # seconds within which a polled signal may come again


class Stopped(BaseException):
    """Raised where a run may stop; a BaseException, so that nothing takes it for a fault.

    Attributes:
        number: the signal's. reason: its name, for messages.
        status: exit status of the process, 128 and the signal's number.
    """

    def __init__(self, number: int):
        super().__init__(_NAMES[signal.Signals(number)])
        self.number, self.reason, self.status = number, str(self), 128 + number


class StopSignals(AbstractContextManager):
    """Inside the block the first signal waits for ``check`` or a ``stoppable`` block.

    A second one ends the process at once, as without this class. Outside the main thread signals
    are left alone, and so is one that the process was started to ignore (``nohup``).

    Args:
        is_polled: a ``stoppable`` block is left by ``poll`` alone, and the same signal may come
            more than once: several ranks talk to one another in such a block, and torchrun passes
            on what the processes may have got from elsewhere too.
    """

    def __init__(self, is_polled: bool = False):
        self.number: int | None = None
        self._is_polled, self._came = is_polled, 0.0
        self._is_stoppable = False
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in _NAMES if signal.getsignal(n) is not signal.SIG_IGN]
            self._previous = {n: signal.signal(n, self._received) for n in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def check(self) -> None:
        """Raises ``Stopped`` if a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, work that changes nothing is given up as soon as a signal comes."""
        self.check()
        self._is_stoppable = True
        try:
            yield
        finally:
            self._is_stoppable = False

    def poll(self) -> None:
        """Leaves a ``stoppable`` block if a signal came."""
        if self._is_stoppable:
            self.check()

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._is_polled:
            self._note(number)
            return
        self.number = number
        self._restore()
        if self._is_stoppable:
            self._is_stoppable = False
            raise Stopped(number)

    def _note(self, number: int) -> None:
        """A first signal, or one that comes long after it."""
        now = time.monotonic()
        if self.number is None:
            self.number, self._came = number, now
        elif now - self._came > _SAME_SIGNAL:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
