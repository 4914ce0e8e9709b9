"""Signs of life of a run's processes, and which of them has died or hangs."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

EVERY = 1.0  # seconds between two beats
DEAD_AFTER = 10.0  # seconds without one
DEAD_AFTER_A_BREAK = 5.0  # the same where a connection broke
ARRIVAL = 300.0  # seconds for a process to start in
PATIENCE = 10.0  # how much longer than usual some work may take

State = Literal["works", "waits", "idle"]


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself every second.

    Attributes:
        number: of the beat. ticks: of the main thread so far.
        state: whether that works, waits in a collective, or is in code that is not the run's.
        patience: how many times longer than usual it may take to the next tick.
        rounds: done; None where nothing is trained.
        pid, host: of the process.
    """

    number: int
    ticks: int
    state: State
    patience: float
    rounds: int | None
    pid: int
    host: str

    @classmethod
    def read(cls, data: bytes) -> Beat:
        return cls(**json.loads(data))

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Pulse:
    """What the main thread of this process is doing; written by it, read by the monitor."""

    ticks: int = 0
    state: State = "idle"
    patience: float = 1.0
    rounds: int | None = None
    beats: int = 0
    host: str = field(default_factory=socket.gethostname)

    def beat(self) -> Beat:
        """The next one."""
        self.beats += 1
        now = (self.beats, self.ticks, self.state, self.patience, self.rounds)
        return Beat(*now, os.getpid(), self.host)

    @contextmanager
    def being(self, state: State) -> Iterator[None]:
        """Inside the block the main thread is in that state."""
        before, self.state = self.state, state
        self.ticks += 1
        try:
            yield
        finally:
            self.ticks += 1
            self.state = before

    @contextmanager
    def patient(self) -> Iterator[None]:
        before, self.patience = self.patience, PATIENCE
        try:
            yield
        finally:
            self.ticks += 1
            self.patience = before


@dataclass(frozen=True)
class Verdict:
    """Why a run ends for all ranks.

    Attributes:
        rank: whose fault it is; None where it is nobody's.
        message: one line for the user.
    """

    rank: int | None
    message: str


@dataclass
class _Life:
    """A rank as this one has heard of it: the last beat, when it came, and when it last moved."""

    heard: float
    moved: float
    beat: Beat | None = None


class Lives:
    """All ranks of a run as one of them hears of them.

    Times are of this process's monotonic clock, so clocks of machines need not agree.

    Args:
        size: how many there are.
        timeout: seconds after which one that neither ticks nor waits hangs.
        now: the time.
    """

    def __init__(self, size: int, timeout: float, now: float):
        self.timeout = timeout
        self.lives = [_Life(now, now) for _ in range(size)]
        self._now = now

    def hear(self, beats: Mapping[int, Beat], now: float) -> None:
        """Takes note of the last beats by rank."""
        if (asleep := now - self._now - 3 * EVERY) > 0:  # this process was, not the others
            for life in self.lives:
                life.heard += asleep
                life.moved += asleep
        self._now = now
        for rank, beat in beats.items():
            life, before = self.lives[rank], self.lives[rank].beat
            if before is None or beat.number != before.number:
                life.heard = now
            if before is None or (beat.ticks, beat.state) != (before.ticks, before.state):
                life.moved = now
            life.beat = beat

    def verdict(self, dead_after: float = DEAD_AFTER) -> Verdict | None:
        """What is wrong, if anything is.

        Args:
            dead_after: seconds without a beat that mean death.
        """
        return self._late() or self._dead(dead_after) or self._hanging() or self._stuck()

    def _late(self) -> Verdict | None:
        for rank, life in enumerate(self.lives):
            if life.beat is None and self._now - life.heard > ARRIVAL:
                return Verdict(rank, f"rank {rank} has not started within {ARRIVAL:.0f} s")
        return None

    def _dead(self, dead_after: float) -> Verdict | None:
        silent = [r for r, x in enumerate(self.lives) if x.beat and self._silence(r) > dead_after]
        if not silent:
            return None
        rank = max(silent, key=self._silence)
        return Verdict(rank, self._line(rank, "has given no sign of life", self.lives[rank].heard))

    def _silence(self, rank: int) -> float:
        return self._now - self.lives[rank].heard

    def _hanging(self) -> Verdict | None:
        """Of several that hang the one that is furthest behind, for which the others may wait."""
        hanging = [rank for rank, life in enumerate(self.lives) if self._hangs(life)]
        if not hanging:
            return None
        rank = min(
            hanging, key=lambda r: (self.lives[r].beat.rounds or 0, self.lives[r].beat.ticks)
        )
        return Verdict(rank, self._line(rank, "is alive but hangs", self.lives[rank].moved))

    def _hangs(self, life: _Life) -> bool:
        beat = life.beat
        if beat is None or beat.state != "works":
            return False
        return self._now - life.moved > self.timeout * beat.patience

    def _stuck(self) -> Verdict | None:
        """Where everybody waits, a message has been lost between them."""
        if any(life.beat is None or life.beat.state != "waits" for life in self.lives):
            return None
        last = max(life.moved for life in self.lives)
        if self._now - last <= 2 * self.timeout:
            return None
        return Verdict(
            None, f"all ranks wait for one another {self._since(last)}; check the network"
        )

    def _line(self, rank: int, what: str, time_of_it: float) -> str:
        beat = self.lives[rank].beat
        rounds = [x.beat.rounds for x in self.lives if x.beat and x.beat.rounds is not None]
        after = f", after round {max(rounds)}" if rounds else ""  # they are in step
        name = f"rank {rank} (process {beat.pid} on {beat.host})"
        return f"{name} {what} {self._since(time_of_it)}{after}"

    def _since(self, then: float) -> str:
        clock = time.localtime(time.time() - (self._now - then))
        return "since " + time.strftime("%H:%M:%S", clock)
