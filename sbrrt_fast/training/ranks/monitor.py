"""A thread that hears whether the other processes of a run still go on, and ends this one if not.

Ranks tell of themselves through the store in which they found each other. Its keys:
``beat/RANK``, ``failure`` (what a rank that failed by itself says) and ``verdict`` (what the ranks
that are left say of one that died or hangs); of the last two the first one written holds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.distributed import Store

from sbrrt_fast.training.ranks.beats import (
    DEAD_AFTER,
    DEAD_AFTER_A_BREAK,
    EVERY,
    Beat,
    Lives,
    Pulse,
    Verdict,
)

_NOTHING = "-"
_LONGEST_ANSWER = 20.0  # seconds to find out who is gone
_GRACE = 3.0  # seconds for a rank that waits to hear of a failure by itself
_ENDED = 1  # exit status


class Monitor(threading.Thread):
    """Beats for this rank and listens to the others, every second.

    Args:
        store: a client of the run's store that nothing else waits in.
        rank, size: this one's number and how many there are.
        timeout: seconds; see ``Lives``.
        pulse: of this process.
        end: ends the process with a status from any thread.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: float,
        pulse: Pulse,
        end: Callable[[int], Any] = os._exit,
    ):
        super().__init__(name="sbrrt-ranks", daemon=True)
        self.rank, self.size, self.pulse = rank, size, pulse
        self.advice = "start it again"
        self._store, self._end = store, end
        self._lives = Lives(size, timeout, time.monotonic())
        self._stopped, self._answered = threading.Event(), threading.Event()
        self._is_asked = False
        self._failed_at: float | None = None
        self.answer: Verdict | None = None
        self.failure: dict[str, Any] | None = None
        for key in ("failure", "verdict"):
            store.compare_set(key, "", _NOTHING)

    @property
    def timeout(self) -> float:
        return self._lives.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._lives.timeout = seconds

    def run(self) -> None:
        while not self._stopped.wait(EVERY if self.pulse.beats else 0):
            try:
                self._beat()
            except Exception as error:  # whatever the store's connection says
                if self._stopped.is_set():
                    return
                text = str(error).partition("\n")[0]
                self._decide(Verdict(None, f"the store of the ranks does not answer ({text})"))
                return

    def stop(self) -> None:
        """Ends the thread; the others must not wait for this rank any more."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=5)

    def explain(self, seconds: float = _LONGEST_ANSWER) -> Verdict | None:
        """Called where a connection broke: what happened to whom, once that is clear.

        ``failure`` is set instead where another rank has failed by itself.
        """
        self._is_asked = True
        if self.is_alive():
            self._answered.wait(seconds)
        return self.answer

    def post_failure(self, message: str, status: int) -> bool:
        """Tells the others that this rank fails; False if another one did so before."""
        record = {"rank": self.rank, "message": message, "status": status}
        text = json.dumps(record)
        try:
            held = self._store.compare_set("failure", _NOTHING, text)
        except RuntimeError:  # the store is gone as well
            return True
        return json.loads(held)["rank"] == self.rank

    def _beat(self) -> None:
        self._store.set(f"beat/{self.rank}", self.pulse.beat().to_bytes())
        heard = [r for r, life in enumerate(self._lives.lives) if self._has_come(r, life.beat)]
        keys = [f"beat/{rank}" for rank in heard]
        failure, verdict, *beats = self._store.multi_get(["failure", "verdict", *keys])
        now = time.monotonic()
        self._lives.hear(dict(zip(heard, map(Beat.read, beats), strict=True)), now)
        if failure != _NOTHING.encode():
            self._take_failure(json.loads(failure), now)
        elif verdict != _NOTHING.encode():
            self._decide(Verdict(**json.loads(verdict)))
        elif found := self._lives.verdict(DEAD_AFTER_A_BREAK if self._is_asked else DEAD_AFTER):
            self._decide(self._posted(found))

    def _has_come(self, rank: int, beat: Beat | None) -> bool:
        return beat is not None or self._store.check([f"beat/{rank}"])

    def _posted(self, found: Verdict) -> Verdict:
        """The verdict that holds for all, which is this one unless another rank was first."""
        full = {"rank": found.rank, "message": f"{found.message}; {self.advice}"}
        held = self._store.compare_set("verdict", _NOTHING, json.dumps(full))
        return Verdict(**json.loads(held))

    def _take_failure(self, failure: dict[str, Any], now: float) -> None:
        """The rank that failed tells why; this one ends, by itself if it can."""
        if failure["rank"] == self.rank:
            return
        self.failure = failure
        self._answered.set()
        self._failed_at = self._failed_at or now
        is_waiting = self.pulse.state == "waits" and not self._is_asked
        if self.pulse.state == "idle" or self._is_asked:
            return
        if now - self._failed_at > (_GRACE if is_waiting else self.timeout):
            self._end(failure["status"])

    def _decide(self, verdict: Verdict) -> None:
        self.answer = verdict
        self._answered.set()
        if self._is_asked or self.pulse.state == "idle":
            return
        if verdict.rank != self.rank:
            print(f"sbrrt-fast: {verdict.message}", file=sys.stderr, flush=True)
        self._end(_ENDED)
