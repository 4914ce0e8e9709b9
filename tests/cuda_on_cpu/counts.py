"""Kernel instantiations built and executed: ``python -m tests.cuda_on_cpu.counts FOLDER``.

FOLDER is what ``SBRRT_KERNEL_COUNTS`` named while the tests ran. Exits 1 unless every kernel that
is built was executed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.build import HERE, sources

VARIANT = "plain"


def built() -> set[str]:
    """Every kernel that a launcher of csrc/cuda launches."""
    names = set()
    for path in sorted((HERE / "ops").glob("*.cpp")):
        if len(sources(path.stem)) > 1:  # planted.cpp has its own kernels
            names |= library(path.stem, VARIANT).kernels().keys()
    return names


def executed(folder: Path) -> dict[str, tuple[int, int]]:
    """Every kernel that ran to its end in a test: most threads, most bytes of shared memory."""
    most: dict[str, tuple[int, int]] = {}
    for path in folder.glob("*.txt"):
        for line in path.read_text().splitlines():
            name, *numbers = line.split("\t")
            threads, shared = map(int, numbers)
            before = most.get(name, (0, 0))
            most[name] = max(threads, before[0]), max(shared, before[1])
    return most


def main(folder: str) -> int:
    """Print both counts, and the kernels that no test ran."""
    all_built = built()
    run = executed(Path(folder)).keys() & all_built
    print(f"kernel instantiations: {len(all_built)} built, {len(run)} executed on the CPU")
    for name in sorted(all_built - run):
        print(f"never executed: {name}")
    return 0 if run == all_built else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
