"""Calls every op of every implementation that this device has, on a round of 8 examples a task.

It checks results and gradients as the benchmarks do and times nothing: a quick answer to whether
kernels run at all, and what a memory checker is run over.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from benchmarks.ops import BACKENDS, Absent, Benchmark
from benchmarks.settings import settings
from benchmarks.shapes import Case
from benchmarks.suite import OPS
from sbrrt_fast.errors import BackendError


def call_all(benchmark: Benchmark) -> dict[str, str]:
    """``case backend`` -> ``right``, ``absent: ...`` or what went wrong."""
    found = {}
    for case in benchmark.cases():
        for backend in BACKENDS:
            if backend in benchmark.variants:
                found[f"{benchmark.name} {case} {backend}"] = call(benchmark, case, backend)
    return found


def call(benchmark: Benchmark, case: Case, backend: str) -> str:
    try:
        for function in benchmark.calls(case, backend, 1):
            function()
        if benchmark.device.type == "cuda":
            torch.cuda.synchronize()
    except (Absent, BackendError) as reason:
        return f"absent: {reason}"
    except Exception as error:  # the others are called all the same
        return f"WRONG: {type(error).__name__}: {error}"
    return "right"


def main() -> int:
    chosen = replace(settings(), quick=True)
    wrong = 0
    for kind in OPS:
        for name, told in call_all(kind(chosen)).items():
            wrong += told.startswith("WRONG")
            print(f"{name}: {told}", flush=True)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
