"""Imports among the rooms of the benchmarks run one way, and none is a circle."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.cases.registry import BENCHMARKS
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.machine import ROOT

FOLDER = ROOT / "benchmarks"
# A room imports itself and those before it; "" are the files beside them.
ORDER = (
    *("pretended_gpu", "harness", "peers", "cases", "tune", "report", ""),
    *("gpu_check", "results_page"),
)
FILES = sorted(FOLDER.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules of the benchmarks that a file imports, wherever in the file."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in modules if is_module(name)}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return name.startswith("benchmarks.") and (path.is_dir() or path.with_suffix(".py").exists())


def room(path: Path) -> str:
    return path.relative_to(FOLDER).parts[0] if path.parent != FOLDER else ""


def room_of(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    return path.name if path.is_dir() and path.parent == FOLDER else room(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_run_one_way(path):
    before = ORDER[: ORDER.index(room(path)) + 1]
    assert {room_of(module) for module in imported(path)} <= set(before)


def test_no_files_import_each_other():
    left = {path: imported(path) for path in FILES}
    while left:
        names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in left}
        free = [path for path, modules in left.items() if not modules & names.keys()]
        assert free, f"a circle among {sorted(names)}"
        left = {path: modules for path, modules in left.items() if path not in free}


def test_every_benchmark_is_registered():
    registered = [kind for kinds in BENCHMARKS.values() for kind in kinds]
    known = {base for kind in registered for base in kind.__mro__}
    for path in (FOLDER / "cases").glob("*.py"):
        module = import_module(f"benchmarks.cases.{path.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Benchmark):
                assert kind in known, f"add {kind.__name__} to benchmarks/cases/registry.py"
