"""Compiles every kernel in every shape class for GPUs that need not be here.

    python -m sbrrt_fast.kernels.aot                       # everything, for sm_80 and sm_90
    python -m sbrrt_fast.kernels.aot --only attention --arch 90 --json table.json

The exit status is 1 if a kernel does not compile, spills registers, needs more shared memory than a
block of the chip can have, multiplies 16-bit matrices without matrix instructions, or does not wait
for the kernel before it where that may still run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from .launch import Launch, recording

# Bytes of shared memory a block can have: CUDA C++ Programming Guide, table of technical
# specifications per compute capability.
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
MATRIX_INSTRUCTION = re.compile(r"\b(HMMA|HGMMA|IMMA|DMMA)\.")
# griddepcontrol.wait, and what may touch global memory.
WAIT_OR_ACCESS = re.compile(r"\b(?:ACQBULK|(?:LDG|STG|LDGSTS|ATOMG|ATOM|REDG|RED|LD|ST|UBLKCP)\.)")
FIRST_WITH_WAIT = 90
HALF_DOT = re.compile(r"tt\.dot .*x(f16|bf16)> \*")


@dataclass(frozen=True)
class Row:
    """What one launch became on one chip; ``spills`` and ``shared`` are bytes.

    It ``waits`` for the kernel before it ahead of its first access to global memory.
    """

    module: str
    name: str
    kernel: str
    arch: int
    num_warps: int = 0
    registers: int = 0
    shared: int = 0
    spills: int = 0
    matrix: str = ""
    instructions: int = 0
    waits: bool = True
    error: str = ""

    def faults(self) -> list[str]:
        """Why this launch will not do; empty if it will."""
        limit = SHARED_LIMIT[self.arch]
        return [
            text
            for text, holds in (
                (self.error, self.error),
                (f"spills {self.spills} bytes", self.spills),
                (f"needs {self.shared} bytes of shared memory, over {limit}", self.shared > limit),
                ("multiplies 16-bit matrices without matrix instructions", self.matrix == "none"),
                (
                    "touches global memory without await_previous()",
                    self.arch >= FIRST_WITH_WAIT and not self.waits,
                ),
            )
            if holds
        ]


def modules() -> list[str]:
    """Names of this package's modules."""
    package = importlib.import_module(__package__)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def recorded(module: str) -> Iterator[tuple[str, Launch]]:
    """A module's launches, named after its calls; none if it has no ``aot_calls``."""
    if module == __name__.rpartition(".")[2]:
        return
    calls = getattr(importlib.import_module(f"{__package__}.{module}"), "aot_calls", tuple)
    for name, call in calls():
        with recording() as launches:
            call()
        assert launches, f"{module}: the call {name} launches nothing"
        yield from ((name, launch) for launch in launches)


def source_of(launch: Launch) -> ASTSource:
    """The kernel with the types that its arguments have at run time.

    As Triton's own launcher does it: a 1 becomes a constant, multiples of 16 are known as such.
    Fresh tensors begin at such multiples; so do the views that the trainer makes.
    """
    kernel, signature, constants, attributes = launch.kernel, {}, {}, {}
    values = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    for place, parameter in enumerate(kernel.params):
        value, specialised = values[parameter.name], not parameter.do_not_specialize
        kind = "constexpr" if parameter.is_constexpr else _type(value)
        if value is None or (kind.startswith("i") and specialised and value == 1):
            kind = "constexpr"
        if kind == "constexpr":
            constants[(place,)] = value
        elif specialised and (kind.startswith("*") or (kind[0] == "i" and value % 16 == 0)):
            attributes[(place,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    return ASTSource(kernel, signature, constants, attributes)


def _type(value: object) -> str:
    """Triton's name of an argument's type."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def compile_launch(module: str, index: int, arch: int) -> Row:
    """Compiles one launch of a module."""
    return row_of(module, *list(recorded(module))[index], arch)


def row_of(module: str, name: str, launch: Launch, arch: int) -> Row:
    """Compiles a launch; an error becomes part of the row."""
    options = {key: launch.constants[key] for key in OPTIONS if key in launch.constants}
    place = module, name, launch.kernel.__name__, arch
    try:
        target = GPUTarget("cuda", arch, 32)
        with _as_on(target):
            compiled = triton.compile(source_of(launch), target=target, options=options)
        usage = resources(compiled.asm["cubin"])
    except Exception as error:  # the compiler has many kinds; each is the row's finding
        return Row(*place, error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
    matrix = usage.pop("matrix")
    if not matrix and HALF_DOT.search(compiled.asm["ttir"]):
        matrix = "none"
    shared, num_warps = compiled.metadata.shared, compiled.metadata.num_warps
    return Row(*place, num_warps=num_warps, shared=shared, matrix=matrix, **usage)


def _as_on(target: GPUTarget):
    """Kernels that ask which chip they are compiled for hear of this one."""
    chip = SimpleNamespace(get_current_target=lambda: target)
    return patch.object(type(driver), "active", chip)


def waits_first(assembly: str) -> bool:
    """Whether machine code waits for the kernel before it, then touches global memory."""
    first = WAIT_OR_ACCESS.search(assembly)
    return first is not None and first[0] == "ACQBULK"


def resources(cubin: bytes) -> dict:
    """Registers, spilled bytes, instructions and their kinds; whether the wait comes first."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _output_of(tools / "cuobjdump", "--dump-resource-usage", path)
        assembly = _output_of(tools / "nvdisasm", "--print-code", path)
    number = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    kinds = MATRIX_INSTRUCTION.findall(assembly)
    return {
        "registers": number["REG"],
        "spills": number["STACK"] + number["LOCAL"],
        "instructions": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", assembly, re.MULTILINE)),
        "waits": waits_first(assembly),
        "matrix": " ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
    }


def _output_of(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def compile_all(only: Sequence[str], archs: Sequence[int], match: str, jobs: int) -> list[Row]:
    """A row per launch of the modules named and chip, in order."""
    tasks = [
        (module, index, arch)
        for module in only
        for index, (name, launch) in enumerate(recorded(module))
        for arch in archs
        if re.search(match, f"{name} {launch.kernel.__name__}")
    ]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(compile_launch, *zip(*tasks, strict=True))) if tasks else []


def table(rows: list[Row]) -> str:
    """The rows as aligned text, with a ``!`` before those with a fault."""
    names = [field.name for field in fields(Row) if field.name not in ("waits", "error")]
    cells = [["", *names]] + [
        ["!" if row.faults() else "", *(str(getattr(row, name)) for name in names)] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sbrrt_fast.kernels.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=modules(), help="modules, such as attention")
    parser.add_argument("--match", default="", help="regular expression on 'call kernel'")
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90], choices=SHARED_LIMIT)
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--json", type=Path, help="also write the table there")
    arguments = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # before kernels are imported: they are compiled here
    rows = compile_all(arguments.only, arguments.arch, arguments.match, arguments.jobs)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    faulty = [row for row in rows if row.faults()]
    for row in faulty:
        print(f"{row.module} {row.name} {row.kernel} sm_{row.arch}: {'; '.join(row.faults())}")
    print(f"Triton {triton.__version__}: {len(rows)} launches compiled, {len(faulty)} with a fault")
    return int(bool(faulty) or not rows)


if __name__ == "__main__":
    sys.exit(main())
