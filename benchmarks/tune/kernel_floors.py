"""The least time each op can take on a GPU: a count of bytes and operations, nothing is measured.

    python -m benchmarks.tune.kernel_floors [--bandwidth 4.3e12] [--flops 790e12]

The counts are those that the benchmarks show beside their times.
"""

from __future__ import annotations

import argparse

from benchmarks.cases.registry import OPS
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.settings import settings
from benchmarks.harness.shapes import BACKWARD, FORWARD, Case
from benchmarks.harness.text import markdown_table

MODEL, DTYPE = "bert-base", "bf16"
BATCHES = ("round", "512")
HEAD = ("op", "batch", "part", "MB", "GFLOP", "floor, us", "bound by")


def rows(op: Benchmark, bandwidth: float, flops: float) -> list[list[str]]:
    """Cells of the table: MB, GFLOP, the floor in microseconds, and what bounds it."""
    lines: list[list[str]] = []
    for batch in BATCHES:
        for part in (FORWARD, BACKWARD):
            cost = op.cost(Case(MODEL, batch, DTYPE, part))
            times = {"bytes": cost.bytes / bandwidth, "operations": cost.flops / flops}
            bound = max(times, key=times.get)
            moved, done = f"{cost.bytes / 1e6:.2f}", f"{cost.flops / 1e9:.3f}"
            figures = [moved, done, f"{1e6 * times[bound]:.2f}", bound]
            if cost.bytes and [op.name, batch, FORWARD, *figures] not in lines:  # no backward
                lines.append([op.name, batch, part, *figures])
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second")
    parser.add_argument("--flops", type=float, default=790e12, help="per second, 16-bit matrices")
    args = parser.parse_args(arguments)
    ops = [kind(settings()) for kind in OPS]
    lines = [line for op in ops for line in rows(op, args.bandwidth, args.flops)]
    print(*markdown_table(HEAD, lines), sep="\n")


if __name__ == "__main__":
    main()
