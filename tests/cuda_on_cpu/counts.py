"""Kernel instantiations built and executed: ``python -m tests.cuda_on_cpu.counts FOLDER``.

FOLDER is what ``SBRRT_KERNEL_COUNTS`` named while the tests ran. Exits 1 unless every kernel that
is built was executed, and in 20 seeded orders of threads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.build import HERE, sources

VARIANT = "plain"
NUM_SEEDS = 20  # orders of threads that must give the same bits


def libraries() -> list[str]:
    """The ops whose kernels ship; planted.cpp has its own."""
    names = sorted(path.stem for path in (HERE / "ops").glob("*.cpp"))
    return [name for name in names if len(sources(name)) > 1]


def built() -> set[str]:
    """Every kernel that a launcher of csrc/cuda launches."""
    return {kernel for name in libraries() for kernel in library(name, VARIANT).kernels()}


class Executed(NamedTuple):
    """The largest launch of a kernel, and the seeds of the thread orders it ran in."""

    num_threads: int = 0
    shared_bytes: int = 0
    seeds: frozenset[int] = frozenset()


def executed(folder: Path) -> dict[str, Executed]:
    """Every kernel that ran to its end in a test."""
    kernels: dict[str, Executed] = {}
    for path in folder.glob("*.txt"):
        for line in path.read_text().splitlines():
            name, *numbers = line.split("\t")
            threads, shared, seed = map(int, numbers)
            known = kernels.get(name, Executed())
            seeds = known.seeds | {seed} if seed else known.seeds  # 0 is the natural order
            most = max(threads, known.num_threads), max(shared, known.shared_bytes)
            kernels[name] = Executed(*most, seeds)
    return kernels


def main(folder: str) -> int:
    """Print the counts, and the kernels that no test ran, or not in enough orders."""
    all_built = built()
    run = {name: how for name, how in executed(Path(folder)).items() if name in all_built}
    ordered = {name for name, how in run.items() if len(how.seeds) >= NUM_SEEDS}
    print(f"kernel instantiations: {len(all_built)} built, {len(run)} executed on the CPU")
    print(f"in {NUM_SEEDS} seeded orders of threads, with equal bits: {len(ordered)}")
    for name in sorted(all_built - ordered):
        print(f"in too few orders: {name}" if name in run else f"never executed: {name}")
    return 0 if ordered == all_built else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
