"""A pytest plugin that tells of every test as it starts and ends, so that a killed run tells too.

    STAGE=folder python -m pytest -p tests.benchmarks.live_log ...

``folder/tests.jsonl`` has a line for each: {"what": "started"}, or "passed", "skipped" or "failed"
with the "text" of the failure. Under pytest-xdist the process that collects the results writes it,
also of workers that died. After a failure that leaves the GPU unusable, a worker ends itself: the
next test gets a new one, and is not failed by what another has broken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.harness.measure import is_lost

FILE, LOST = "tests.jsonl", 70  # an exit status


class LiveLog:
    """Appends to a file; every line is on its way to the disk before the next test."""

    def __init__(self, path: Path):
        self.file = path.open("a", encoding="utf-8")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_told = report.when in ("call", "???") or report.outcome != "passed"  # ???: of a crash
        if is_told:
            text = {"text": str(report.longrepr)} if report.failed else {}
            self._write(report.outcome, report.nodeid, **text)

    def _write(self, what: str, test: str, **more: str) -> None:
        self.file.write(json.dumps({"what": what, "test": test, **more}) + "\n")
        self.file.flush()


class LostDevice:
    """Ends a worker whose GPU answers no more, when the failure has been sent."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and is_lost():
            os.write(2, f"{report.nodeid}: the GPU is lost\n{report.longrepr}\n".encode())
            os._exit(LOST)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(LostDevice())
    elif folder := os.environ.get("STAGE"):
        config.pluginmanager.register(LiveLog(Path(folder) / FILE))
