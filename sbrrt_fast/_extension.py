"""Loads sbrrt_fast._C, which registers kernels for the ops of ``torch.ops.sbrrt``.

A package without it works, on the implementations that are left. One that was compiled for another
torch is a mistake of the installation: importing this module raises ``ExtensionError``.
``SBRRT_EXTENSION=0`` leaves the extension out.

Attributes:
    extension: the module ``sbrrt_fast._C``, or None where it cannot be used.
    extension_error: why it cannot be used, and what to do; None where it can.
    INSTALL: how to install it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import torch

from sbrrt_fast.errors import ExtensionError
from sbrrt_fast.torch_build import torch_build

INSTALL = "`pip install .` in the source folder"


def _load() -> tuple[ModuleType | None, str | None]:
    asked = os.environ.get("SBRRT_EXTENSION", "1")
    if asked not in ("0", "1"):
        raise ExtensionError(f"SBRRT_EXTENSION is 0 or 1, not {asked!r}")
    if asked == "0":
        return None, "the C++ ops are left out: SBRRT_EXTENSION=0 is set"
    spec = importlib.util.find_spec("sbrrt_fast._C")
    if spec is None:
        return None, f"the C++ ops are not built; run {INSTALL}"
    _check(built_for(Path(spec.origin)))
    try:
        return importlib.import_module("sbrrt_fast._C"), None
    except ImportError as error:
        raise _misfit(f"do not load with torch {torch_build(torch)} ({error})") from None


def built_for(path: Path) -> str | None:
    """The build of torch that an extension was compiled for, as ``torch_build`` has it.

    Args:
        path: of the extension, which has its record beside it.

    Returns:
        None where there is no record.
    """
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record["torch"]


def _check(built: str | None) -> None:
    """Raises ExtensionError where the extension is for another build of torch than is here."""
    if built not in (None, torch_build(torch)):
        raise _misfit(f"were compiled for torch {built}, and torch {torch_build(torch)} is here")


def _misfit(how: str) -> ExtensionError:
    return ExtensionError(
        f"the C++ ops {how}; install the package for this torch: {INSTALL}, or its wheel;"
        " SBRRT_EXTENSION=0 leaves the C++ ops out"
    )


extension, extension_error = _load()


def refuse(op: str) -> None:
    """The extension that was loaded has another ``op`` than this package calls."""
    global extension, extension_error
    extension = None
    extension_error = (
        f"the C++ ops were built from other sources (their {op} is not this version's);"
        f" rebuild them: {INSTALL}"
    )


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 products have no instructions there, as far as the extension can tell."""
    return bool(device.type == "cpu" and extension and not extension.has_bfloat16_products())
