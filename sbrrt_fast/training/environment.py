"""What a run was computed with, for its record."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from typing import Any

import torch

from sbrrt_fast.info import devices, versions


def run_environment(device: torch.device, num_ranks: int = 1) -> dict[str, Any]:
    """JSON values that say where and with what a run was trained.

    Returns:
        ``versions`` by package, ``system``, ``processor``, ``threads`` (of torch), ``gpu`` (None on
        a CPU), ``ranks`` (how many processes trained it) and ``finished`` (now, UTC, ISO 8601).
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
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
