"""Loads sbrrt_fast._C, which registers kernels for the ops of ``torch.ops.sbrrt``.

Attributes:
    extension: the module ``sbrrt_fast._C``, or None where it cannot be used.
    extension_error: why it cannot be used, and what to do; None where it can.
    INSTALL: how to install it.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

INSTALL = "`pip install --no-build-isolation .` in the source folder"


def _load() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec("sbrrt_fast._C") is None:
        return None, f"the C++ ops are not built; run {INSTALL}"
    try:
        return importlib.import_module("sbrrt_fast._C"), None
    except ImportError as error:
        reason = str(error).strip()
    return None, (
        f"the C++ ops do not load with torch {torch.__version__}, perhaps because they were built"
        f" with another version ({reason}); rebuild them: {INSTALL}"
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
