"""What nvcc made of the kernels, read out of the extension: no GPU is needed.

    python -m tests.build.cuda_check sbrrt_fast/_C.*.so [--launches FOLDER] [--json table.json]

FOLDER is what ``SBRRT_KERNEL_COUNTS`` named while the kernels' tests ran: it tells how large blocks
get, of which the machine code knows the bound on threads alone. The exit status is 1 if a kernel
spills registers, is launched with larger blocks than it or its chip can have, multiplies 16-bit
matrices without matrix instructions, does not begin with the wait for the kernel before it where
that may still run, or was never executed in the tests.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from tests.cuda_on_cpu import short_name
from tests.cuda_on_cpu.counts import Executed, executed

# Of a multiprocessor: CUDA C++ Programming Guide, table of technical specifications per compute
# capability. The driver takes RESERVED bytes of shared memory for each block.
SHARED = {80: 164 << 10, 90: 228 << 10}
RESERVED = 1 << 10
MOST_SHARED = 99 << 10  # of a block on 8.6, 8.9 and 12.0, where the code of 8.0 runs or is compiled
WARPS, BLOCKS, SCHEDULERS = 64, 32, 4
REGISTERS = 16 << 10  # of a scheduler
HALF_ATTENTION = re.compile(r"attention\w*<(__half|__nv_bfloat16)\b")
GLOBAL_ACCESS = re.compile(r"\b(?:LDG|STG|LDGSTS)\.\S*")
# griddepcontrol.wait, and what may touch global memory.
WAIT_OR_ACCESS = re.compile(r"\b(?:ACQBULK|(?:LDG|STG|LDGSTS|ATOMG|ATOM|REDG|RED|LD|ST|UBLKCP)\.)")
FIRST_WITH_WAIT = 90
# Lines of cuobjdump: a chip; a function, in the three kinds of listing.
MARK = re.compile(
    r"^(?:arch = sm_(?P<arch>\d+)|\s*Function (?P<usage>\S+?):?|\s*Function : (?P<sass>\S+)"
    r"|\.nv\.info\.(?P<info>\S+))\s*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Kernel:
    """What a kernel became on one chip.

    ``threads`` and ``shared`` bytes are of the largest block that was launched; where none is
    known, of the largest it was compiled for. ``warps`` is how many a multiprocessor then has at
    most, and ``limit`` what it has no more of. ``wide`` of its ``accesses`` to global memory move
    16 bytes. It ``waits`` for the kernel before it ahead of the first of them.
    """

    name: str
    arch: int
    registers: int = 0
    spills: int = 0  # bytes
    threads: int = 0
    max_threads: int = 0
    shared: int = 0
    warps: int = 0
    limit: str = ""
    hmma: int = 0
    wide: int = 0
    accesses: int = 0
    waits: bool = True
    executed: bool = True

    def faults(self) -> list[str]:
        """Why it will not do; empty if it will."""
        most = min(SHARED[self.arch] - RESERVED, MOST_SHARED)
        found = {
            f"spills {self.spills} bytes": self.spills,
            f"has {self.threads} threads, over {self.max_threads}": self.threads > self.max_threads,
            f"has {self.shared} bytes of shared memory, over {most}": self.shared > most,
            "multiplies 16-bit matrices without matrix instructions": not self.hmma
            and HALF_ATTENTION.match(self.name),
            "touches global memory without await_previous_kernel()": self.arch >= FIRST_WITH_WAIT
            and not self.waits,
            "is never executed by the tests": not self.executed,
        }
        return [text for text, holds in found.items() if holds]


def sections(listing: str) -> Iterator[tuple[tuple[int, str], str]]:
    """((chip, mangled name), what is told of it) out of a listing by cuobjdump."""
    arch, marks = 0, list(MARK.finditer(listing))
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        if mark["arch"]:
            arch = int(mark["arch"])
        else:
            name = mark["usage"] or mark["sass"] or mark["info"]
            yield (arch, name), listing[mark.end() : after.start() if after else len(listing)]


def resources(text: str, arch: int) -> dict[str, int]:
    """Of a function in ``cuobjdump -res-usage``."""
    number = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
    shared = number["SHARED"]
    if arch >= 90 and shared:
        shared -= RESERVED  # told there, though it is the driver's
    spills = number["STACK"] + number["LOCAL"]
    return {"registers": number["REG"], "spills": spills, "shared": shared}


def instructions(text: str) -> dict[str, int]:
    """Of a function in ``cuobjdump -sass``."""
    accesses = GLOBAL_ACCESS.findall(text)
    return {
        "hmma": len(re.findall(r"\bHMMA\.", text)),
        "wide": sum(access.endswith(".128") for access in accesses),
        "accesses": len(accesses),
    }


def waits_first(text: str) -> bool:
    """Whether a function in ``cuobjdump -sass`` waits for the kernel before it first of all."""
    first = WAIT_OR_ACCESS.search(text)
    return first is not None and first[0] == "ACQBULK"


def most_threads(text: str) -> int:
    """Of a function in ``cuobjdump -elf``: what __launch_bounds__ promised; 1024 without."""
    found = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s*(0x\w+) (0x\w+) (0x\w+)", text)
    if not found:
        return 1024
    x, y, z = (int(size, 16) for size in found.groups())
    return x * y * z


def occupancy(arch: int, threads: int, registers: int, shared: int) -> tuple[int, str]:
    """Warps that a multiprocessor can have at once, and what bounds their number."""
    warps = -(-threads // 32)
    registers_per_warp = -(-registers * 32 // 256) * 256
    shared_per_block = -(-(shared + RESERVED) // 128) * 128
    blocks = {
        "warps": WARPS // warps,
        "blocks": BLOCKS,
        "registers": REGISTERS // registers_per_warp * SCHEDULERS // warps,
        "shared": SHARED[arch] // shared_per_block,
    }
    limit = min(blocks, key=blocks.get)
    return blocks[limit] * warps, limit


def tool(name: str, *arguments: object) -> str:
    """What a program that comes with Triton says."""
    spec = find_spec("triton")
    assert spec, "cuobjdump comes with Triton, which is not installed"
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    command = [str(path), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Names as the source has them: without namespaces, result and arguments."""
    names = sorted(set(names))
    told = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout
    return {
        name: re.sub(r"^void |\([^()]*\)$", "", short_name(line))
        for name, line in zip(names, told.splitlines(), strict=True)
    }


def kernels(library: Path, launches: dict[str, Executed] | None) -> list[Kernel]:
    """The kernels of a library, by name."""
    usage = dict(sections(tool("cuobjdump", "-res-usage", library)))
    sass = dict(sections(tool("cuobjdump", "-sass", library)))
    info = dict(sections(tool("cuobjdump", "-elf", library)))
    names = demangled(name for _, name in usage)
    rows = []
    for (arch, mangled), text in usage.items():
        name, facts = names[mangled], resources(text, arch)
        bound = most_threads(info[arch, mangled])
        threads, dynamic, _ = (launches or {}).get(name, Executed(bound))
        facts["shared"] += dynamic
        warps, limit = occupancy(arch, threads, facts["registers"], facts["shared"])
        found = instructions(sass[arch, mangled])
        was_executed = launches is None or name in launches
        size = {"threads": threads, "max_threads": bound, "warps": warps, "limit": limit}
        does = {"executed": was_executed, "waits": waits_first(sass[arch, mangled])}
        rows.append(Kernel(name, arch, **does, **size, **facts, **found))
    return sorted(rows, key=lambda kernel: (kernel.name, kernel.arch))


def table(rows: Sequence[Kernel]) -> str:
    """The rows as aligned text, with a ``!`` before those with a fault."""
    names = [field.name for field in fields(Kernel) if field.type != "bool"]
    cells = [["", *names]] + [
        ["!" if row.faults() else "", *(str(getattr(row, name)) for name in names)] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.build.cuda_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("library", type=Path)
    parser.add_argument("--launches", type=Path, help="folder of what the tests launched")
    parser.add_argument("--json", type=Path, help="also write the table there")
    arguments = parser.parse_args(argv)
    launches = executed(arguments.launches) if arguments.launches else None
    rows = kernels(arguments.library, launches)
    print(table(rows))
    if launches is None:
        print("without --launches: threads are bounds, shared is the static part")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    faulty = [row for row in rows if row.faults()]
    for row in faulty:
        print(f"{row.name} sm_{row.arch}: {'; '.join(row.faults())}")
    print(f"{len({row.name for row in rows})} kernels on {len({row.arch for row in rows})} chips,"
          f" {len(faulty)} with a fault")  # fmt: skip
    return int(bool(faulty) or not rows)


if __name__ == "__main__":
    sys.exit(main())
