"""How far a run of the benchmarks is, in a file: another process goes on where one has broken.

A kernel that writes out of bounds leaves its process's GPU unusable, and a capture that is broken
off leaves its allocator degraded: whatever such a process times afterwards is wrong. So the process
ends there, and ``run.supervise`` starts the next one, which leaves out what broke the last.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.results import write_json

FRESH = 75  # the exit status of a process that wants another one to go on


class FreshProcess(Exception):
    """This process cannot go on; its text is the reason."""


class Progress:
    """What is done, what broke, and what is at hand.

    Args:
        path: the file; None keeps it in memory, where no other process goes on.

    Attributes:
        done: keys of what is finished. broken: what is left out, and why. uncaptured: what is
            timed without a graph, since capturing it failed, and why.
        current: the key of what is at hand, or "".
    """

    def __init__(self, path: Path | None = None):
        self.path, self.done, self.current = path, [], ""
        self.broken: dict[str, str] = {}
        self.uncaptured: dict[str, str] = {}
        if path and path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            self.done, self.current = record["done"], record["current"]
            self.broken, self.uncaptured = record["broken"], record["uncaptured"]

    def begin(self, key: str) -> None:
        self.current = key
        self.save()

    def end(self, key: str) -> None:
        self.done.append(key)
        self.begin("")

    def break_off(self, reason: str) -> None:
        """What is at hand is left out from now on."""
        self.broken[self.current] = reason
        self.begin("")

    def save(self) -> None:
        if self.path:
            names = ("done", "current", "broken", "uncaptured")
            write_json(self.path, {name: getattr(self, name) for name in names})
