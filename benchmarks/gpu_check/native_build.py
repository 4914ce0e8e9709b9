"""Makes the package importable with its extension: as it is, as it was carried along, or compiled.

    python -m benchmarks.gpu_check.native_build [--no-compile] [--without-cuda] [--copy-to DIR]

An extension that lies in ``sbrrt_fast/`` and imports, with CUDA where torch has it, is used as it
is. Else it is compiled in place, from what is installed alone. ``--copy-to`` leaves the extension
there where it is small enough to come back, to be carried along the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch

from benchmarks.gpu_check.files import MOST_BYTES
from benchmarks.harness.machine import ROOT
from benchmarks.harness.results import leave_result

PROBE = """
import json, sbrrt_fast.kernels
from sbrrt_fast._extension import extension, extension_error
if extension is None:
    raise SystemExit(extension_error)
print(json.dumps(extension.build_info() | {"path": extension.__file__}))
"""
INSTALL = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v", "-e")
CARRIED, COMPILED, AS_IT_IS = "carried along", "compiled", "as it is"


def extensions() -> list[Path]:
    """Files of the extension in the source folder."""
    return sorted((ROOT / "sbrrt_fast").glob("_C*.so"))


def extension_info() -> dict | None:
    """How the extension was built and where it lies, if it imports, in a process of its own."""
    return _probe(tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in extensions()))


@cache
def _probe(files: tuple) -> dict | None:
    command = [sys.executable, "-c", PROBE]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        print(process.stderr.strip()[-2000:], flush=True)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def is_complete(info: dict | None, wants_cuda: bool) -> bool:
    return info is not None and (info["cuda"] is not None or not wants_cuda)


def build(wants_cuda: bool, compiles: bool) -> tuple[str, dict | None]:
    """How the extension came to be there, and its build; None where it is not."""
    if is_complete(info := extension_info(), wants_cuda):
        return AS_IT_IS, info
    if extensions() and compiles:
        install({"SBRRT_EXTENSION": "0"})
        if is_complete(info := extension_info(), wants_cuda):
            return CARRIED, info
    if compiles:
        install({})
        info = extension_info()
    return COMPILED, info if is_complete(info, wants_cuda) else None


def install(environment: dict[str, str]) -> None:
    """Puts the package in place; its output goes where this process's does."""
    _probe.cache_clear()
    command = [sys.executable, *INSTALL, "."]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)


def copy_back(path: Path, folder: Path) -> None:
    """Where it is not too large."""
    if path.stat().st_size <= MOST_BYTES:
        shutil.copyfile(path, folder / path.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-compile", action="store_true", help="take what there is, or fail")
    parser.add_argument("--without-cuda", action="store_true")
    parser.add_argument("--copy-to", type=Path, metavar="DIR")
    args = parser.parse_args()
    start, wants_cuda = time.perf_counter(), bool(torch.version.cuda) and not args.without_cuda
    how, info = build(wants_cuda, compiles=not args.no_compile)
    record = {"how": how, "seconds": time.perf_counter() - start, "build": info}
    print(json.dumps(record, indent=1))
    leave_result(record)
    if info and args.copy_to and how == COMPILED:
        copy_back(Path(info["path"]), args.copy_to)
    return 0 if info else 1


if __name__ == "__main__":
    sys.exit(main())
