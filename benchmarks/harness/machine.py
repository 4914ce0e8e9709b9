"""What the figures depend on: hardware, versions, commit; and what the hardware does at best."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

from benchmarks.harness.measure import Budget, Stopwatch, quartiles
from sbrrt_fast.info import devices, extension_state, versions
from sbrrt_fast.training.cost.floor import Ceilings, measure_ceilings

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def environment(device: torch.device, quick: bool) -> dict:
    """What a run ran on, as JSON values."""
    here, known, build = devices(), versions(), extension_state()
    hardware = here["cpu"]["name"]
    if device.type == "cuda":
        hardware = torch.cuda.get_device_properties(device).name
    return {
        "device": device.type,
        "hardware": hardware,
        "cpu": here["cpu"],
        "gpus": here["gpus"],
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {n: v["version"] or f"absent: {v['reason']}" for n, v in known.items()},
        "extension": build["build"] or f"absent: {build['reason']}",
        "system": platform.platform(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
    }


def commit() -> str:
    """The checkout's, with a + where tracked files were changed; ``unknown`` without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Machine:
    """The ceilings of a device, measured.

    Attributes:
        flops: of a matrix product, per second, by precision. bytes: of a copy, read and written,
            per second. launch: seconds of the smallest op.
    """

    flops: dict[str, float]
    bytes: float
    launch: float

    def ceilings(self, precision: str) -> Ceilings:
        """What a round in a precision can reach; bf16 products may be made in fp32 too."""
        known = self.flops.values() if precision == "bf16" else [self.flops[precision]]
        return Ceilings(max(known), self.bytes)


def measure(device: torch.device) -> Machine:
    """In a few seconds."""
    ceilings = {name: measure_ceilings(device, dtype) for name, dtype in PRECISIONS.items()}
    bandwidth = max(c.bytes for c in ceilings.values())
    return Machine({n: c.flops for n, c in ceilings.items()}, bandwidth, _launch(device))


def _launch(device: torch.device) -> float:
    """Of an in-place addition of 8 numbers: from the host on a CPU, in a graph on a GPU."""
    x = torch.zeros(8, device=device)
    budget = Budget(sample_seconds=1e-3)
    with torch.no_grad():
        watch = Stopwatch([lambda: x.add_(1.0)], device, budget)
        return quartiles([watch.sample() for _ in range(15)])[1]


@cache
def bf16_over_fp32(device: torch.device) -> float:
    """Time of torch's matrix product in bfloat16 over that in float32.

    Large where the processor has no instructions for it, so that torch emulates them.
    """
    seconds = {}
    for name, dtype in PRECISIONS.items():
        a, b = torch.randn(2, 512, 512, device=device).to(dtype)
        watch = Stopwatch([lambda a=a, b=b: a @ b.t()], device, Budget())
        seconds[name] = min(watch.sample() for _ in range(5))
    return seconds["bf16"] / seconds["fp32"]


def best(a: Machine, b: Machine) -> Machine:
    """The higher ceilings of two measurements."""
    flops = {name: max(a.flops[name], b.flops[name]) for name in a.flops}
    return Machine(flops, max(a.bytes, b.bytes), min(a.launch, b.launch))
