"""What a run was computed with, for its record."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime, timezone
from typing import Any

import torch

from sbrrt_fast.info import devices, versions


def run_environment(
    device: torch.device, num_ranks: int = 1, other_cores: float | None = None
) -> dict[str, Any]:
    """JSON values that say where and with what a run was trained.

    Args:
        other_cores: of ``OtherWork``.

    Returns:
        ``versions`` by package, ``system``, ``processor``, ``threads`` (of torch), ``gpu`` (None on
        a CPU), ``ranks`` (how many processes trained it), ``cores`` of the machine, how many of
        them other work kept busy meanwhile (``other_cores``) and ``finished`` (now, UTC, ISO 8601).
        All but the number of ranks are of the first one.
    """
    machine = devices()
    on_gpu = device.type == "cuda"
    installed = {name: found["version"] for name, found in versions().items() if found["version"]}
    return {
        "versions": installed,
        "system": platform.platform(),
        "processor": f"{machine['cpu']['name']} ({machine['cpu']['capability']})",
        "threads": machine["cpu"]["num_threads"],
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "ranks": num_ranks,
        "cores": os.cpu_count(),
        "other_cores": other_cores,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class OtherWork:
    """How many of the machine's cores are busy with the work of others since this was made."""

    def __init__(self) -> None:
        self._start = time.monotonic(), _busy_seconds(), time.process_time()

    def cores(self) -> float | None:
        """Their mean number; None where the system does not tell (it is not Linux).

        What a hypervisor takes away counts too. A run that shares its cores is slower than it
        would be alone, and its rounds per second are no measure of the step.
        """
        began, busy_before, own_before = self._start
        busy, seconds = _busy_seconds(), time.monotonic() - began
        if busy is None or busy_before is None or seconds <= 0:
            return None
        others = busy - busy_before - (time.process_time() - own_before)
        return round(max(others, 0.0) / seconds, 3)


def _busy_seconds() -> float | None:
    """Of all cores together since the machine started, from the first line of /proc/stat."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
