"""Calls every op of every implementation that this device has, on a round of 8 examples a task.

    python -m benchmarks.small_calls [--backends cuda] [--without bert-base]

It checks results and gradients as the benchmarks do and times nothing: a quick answer to whether
kernels run at all, and what a memory checker is run over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.ops import BACKENDS, Absent, Benchmark
from benchmarks.settings import settings
from benchmarks.shapes import Case
from benchmarks.suite import OPS
from sbrrt_fast.errors import BackendError


def call_all(
    benchmark: Benchmark, backends: Sequence[str] = BACKENDS, without: str | None = None
) -> Iterator[tuple[str, str]]:
    """``case backend`` and ``right``, ``absent: ...`` or what went wrong."""
    for case in benchmark.cases():
        if without and without in str(case):
            continue
        for backend in (name for name in backends if name in benchmark.variants):
            yield f"{benchmark.name} {case} {backend}", call(benchmark, case, backend)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--without", help="leaves out cases with this in their name")
    args = parser.parse_args()
    chosen = replace(settings(), quick=True)
    wrong = 0
    for kind in OPS:
        for name, told in call_all(kind(chosen), args.backends, args.without):
            wrong += told.startswith("WRONG")
            print(f"{name}: {told}", flush=True)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
