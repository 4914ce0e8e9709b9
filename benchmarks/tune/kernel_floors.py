"""The least time each op can take on a GPU: a count of bytes and operations, nothing is measured.

    python -m benchmarks.tune.kernel_floors [--bandwidth 4.3e12] [--flops 790e12]

The counts are those that the benchmarks show beside their times.
"""

from __future__ import annotations

import argparse

from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.settings import settings
from benchmarks.harness.shapes import BACKWARD, FORWARD, Case
from benchmarks.suite import OPS

MODEL, DTYPE = "bert-base", "bf16"
BATCHES = ("round", "512")
HEAD = "| op | batch | part | MB | GFLOP | floor, us | bound by |\n" + "|---" * 7 + "|"
ROW = "| {} | {} | {} | {:.2f} | {:.3f} | {:.2f} | {} |"


def rows(op: Benchmark, bandwidth: float, flops: float) -> list[str]:
    """Markdown rows: MB, GFLOP, the floor in microseconds, and what bounds it."""
    lines: list[str] = []
    for batch in BATCHES:
        for part in (FORWARD, BACKWARD):
            cost = op.cost(Case(MODEL, batch, DTYPE, part))
            times = {"bytes": cost.bytes / bandwidth, "operations": cost.flops / flops}
            bound = max(times, key=times.get)
            numbers = cost.bytes / 1e6, cost.flops / 1e9, 1e6 * times[bound]
            line = ROW.format(op.name, batch, part, *numbers, bound)
            if cost.bytes and line.replace(BACKWARD, FORWARD) not in lines:  # without a backward
                lines.append(line)
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second")
    parser.add_argument("--flops", type=float, default=790e12, help="per second, 16-bit matrices")
    args = parser.parse_args(arguments)
    print(HEAD)
    for kind in OPS:
        for line in rows(kind(settings()), args.bandwidth, args.flops):
            print(line)


if __name__ == "__main__":
    main()
