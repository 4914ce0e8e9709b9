"""Which transformers the package works with."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from sbrrt_fast.errors import ConfigError

OLDEST = (5, 0)
_INSTALL = f"pip install 'transformers>={OLDEST[0]}.{OLDEST[1]}'"


def require_transformers() -> None:
    """Checks that transformers is there and not too old.

    Raises:
        ConfigError: with what to install.
    """
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise ConfigError(f"transformers is not installed; {_INSTALL}") from None
    numbers = tuple(map(int, re.findall(r"\d+", installed)[:2]))
    if numbers < OLDEST:
        raise ConfigError(f"transformers {installed} is too old for the kernels; {_INSTALL}")
