"""Rounds per second beside other busy processes, with GNU OpenMP's spinning threads and without.

    python -m benchmarks.tune.shared_machine [--rounds 6] [--repeats 3] [--busy N]

A thread of GNU OpenMP that waits for the others spins for 300,000 turns before it sleeps. Alone on
the machine that saves a wake-up; beside other processes it keeps a core from the thread that is
waited for. ``GOMP_SPINCOUNT=2000``, which the command line sets, gives the core up soon.

Every figure is of a process of its own that trains SBRRT rounds (those of ``harness.short_run``);
the four variants take turns, and the medians are printed. ``busy`` processes, two by default, add
numbers meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = {"GOMP_SPINCOUNT unset": None, "GOMP_SPINCOUNT=2000": "2000"}


def rounds_per_second(num_rounds: int) -> float:
    """Of this process, after two rounds that do not count."""
    from benchmarks.harness.short_run import ShortRun  # loads torch

    run, begin = ShortRun(num_rounds + 2), 0.0
    run.step.model.train()
    for index, batches in enumerate(run.rounds()):
        if index == 2:
            begin = time.perf_counter()
        run.step.round(batches, index)
    return num_rounds / (time.perf_counter() - begin)


def measured(spin: str | None, num_rounds: int) -> float:
    """``rounds_per_second`` of a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if spin is not None:
        environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, "-m", "benchmarks.tune.shared_machine", "--one", str(num_rounds)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(process.stdout.split()[-1])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many other processes that never wait."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(rounds_per_second(args.one))
        return
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.repeats):
        for count in (0, args.busy):
            for name, spin in SPINS.items():
                with busy_processes(count):
                    rate = measured(spin, args.rounds)
                samples.setdefault((name, count), []).append(rate)
                print(f"{name}, {count} busy: {rate:.3f} rounds/s", file=sys.stderr)
    record = [
        {"variant": name, "busy": count, "rounds_per_second": statistics.median(rates)}
        for (name, count), rates in samples.items()
    ]
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "rates": record}))


if __name__ == "__main__":
    main()
