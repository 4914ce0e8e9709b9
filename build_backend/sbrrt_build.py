"""The build backend: setuptools', beside the torch of the environment.

The extension loads with the one release of torch that it was compiled for. So no torch is among the
requirements of a build: it takes the one that is installed where the package goes. Under build
isolation pip's Python is that environment's, with its packages hidden; they are put last on the
path, behind what isolation brought.

``SBRRT_EXTENSION=0`` builds the package without the extension. That needs no torch, nor does a
source distribution, and setup.py, which holds the extension alone, is then not run.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys

from setuptools.build_meta import _BuildMetaBackend  # what setuptools documents for its wrappers

_NO_SCRIPT = "setup.py of no extension"  # setuptools reads pyproject.toml where there is no script


def wants_extension() -> bool:
    """Whether SBRRT_EXTENSION leaves the extension in; exits with one line for other values."""
    asked = os.environ.get("SBRRT_EXTENSION", "1")
    if asked not in ("0", "1"):
        raise SystemExit(f"sbrrt_fast: SBRRT_EXTENSION is 0 or 1, not {asked!r}.")
    return asked == "1"


def show_environment() -> None:
    """Makes the environment's torch importable where build isolation hides it."""
    if importlib.util.find_spec("torch") is not None:
        return
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # no virtual environment
        folders.append(site.getusersitepackages())
    for folder in folders:
        site.addsitedir(folder)


class Backend(_BuildMetaBackend):
    """The hooks of PEP 517 and 660; those for a source distribution leave the extension out."""

    _is_sdist = False

    def run_setup(self, setup_script: str = "setup.py") -> None:
        if self._is_sdist or not wants_extension():
            setup_script = _NO_SCRIPT
        else:
            show_environment()
        super().run_setup(setup_script)

    def get_requires_for_build_sdist(self, config_settings=None) -> list[str]:
        self._is_sdist = True
        return super().get_requires_for_build_sdist(config_settings)

    def build_sdist(self, sdist_directory, config_settings=None) -> str:
        self._is_sdist = True
        return super().build_sdist(sdist_directory, config_settings)


_backend = Backend()
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
