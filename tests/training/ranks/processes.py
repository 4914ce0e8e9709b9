"""Starts processes with torchrun's environment, or torchrun itself, and collects what they say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.distributed import TCPStore

from tests.conftest import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's, without a rank's variables, and ``more``."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


@dataclass
class Ended:
    """A process that has ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def value(self):
        """The JSON value on the last line."""
        assert self.status == 0, self.err
        return json.loads(self.out.splitlines()[-1])


class Started:
    """A process as it runs; what it prints goes into files, which never fill up."""

    def __init__(self, command: Sequence[str], **variables: str):
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        out, err = self.files
        self.process = subprocess.Popen(
            list(command), stdout=out, stderr=err, env=environment(**variables)
        )

    def ended(self, seconds: float) -> Ended:
        """Waits for it; one that takes longer is killed and fails the test."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            out, err = self.printed()
            raise AssertionError(f"not ended after {seconds} s:\n{out[-2000:]}\n{err}") from None
        return Ended(self.process.returncode, *self.printed())

    def printed(self) -> list[str]:
        """Standard output and error so far."""
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().replace("\r", "\n"))
        return texts


def run_ranks(num_ranks: int, name: str, *arguments: str, seconds: float = 120) -> list[Ended]:
    """Runs the function ``name`` of ``workers.py`` in several processes, by rank.

    As torchrun's agent does, this process keeps their store, which so outlives each of them.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        Started(
            (sys.executable, "-m", "tests.training.ranks.workers", name, *arguments),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(num_ranks),
            LOCAL_WORLD_SIZE=str(num_ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        for rank in range(num_ranks)
    ]
    return [process.ended(seconds) for process in processes]


@dataclass
class Torchrun:
    """``torchrun ... -m sbrrt_fast train ...`` as it runs."""

    num_ranks: int
    arguments: Sequence[str]
    flags: Sequence[str] = ("--standalone",)
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        ranks = ("--nproc-per-node", str(self.num_ranks))
        command = (*TORCHRUN, *self.flags, *ranks, "-m", "sbrrt_fast", *self.arguments)
        self.started = Started(command, **self.variables)
        self.process = self.started.process

    def pids(self) -> dict[int, int]:
        """The processes of the ranks, by number."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()]
        variables = {pid: _variables(pid) for pid in pids}
        return {int(v["RANK"]): pid for pid, v in variables.items() if "RANK" in v}

    def wait_for(self, is_so: Callable[[], bool], seconds: float = 120) -> None:
        """Until it is so."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.started.printed()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ended(self, seconds: float = 120) -> Ended:
        return self.started.ended(seconds)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids()[rank], number)


def _variables(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text()
    except OSError:  # it has ended
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if item)


def num_lines(run: Path) -> int:
    """Lines in the log of a run so far."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def own_lines(text: str) -> list[str]:
    """The lines of standard error that the command wrote, without torchrun's own."""
    return [line for line in text.splitlines() if line.startswith("sbrrt-fast")]
