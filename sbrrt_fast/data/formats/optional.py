"""Libraries that only some files need."""

from __future__ import annotations

import importlib
from types import ModuleType

from sbrrt_fast.errors import DataError


def import_optional(module: str, extra: str, purpose: str) -> ModuleType:
    """The library, or DataError naming the extra that installs it.

    Args:
        extra: of this package. purpose: what cannot be read without the library.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} cannot be read without {module.partition('.')[0]} ({error}); install it "
            f"with `pip install 'sbrrt_fast[{extra}]'`"
        ) from None
