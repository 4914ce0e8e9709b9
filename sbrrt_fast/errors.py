"""Errors a user can act on. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

from sbrrt_fast.messages import printable


class SbrrtError(Exception):
    """Base of every error this package raises on bad input; the command line prints it bare.

    The message is one line: control characters and line breaks in it are escaped.

    Attributes:
        is_told: another process of the run tells the user, so this one prints nothing.
    """

    is_told = False

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class ConfigError(SbrrtError, ValueError):
    """A configuration key, value or combination that cannot be used."""


class DataError(SbrrtError, ValueError):
    """A task file that cannot be read as described; the message starts with ``file:line``."""


class WeightsError(SbrrtError, ValueError):
    """A checkpoint that is missing, truncated or does not fit the model."""


class DivergedError(SbrrtError):
    """Training made a loss, a gradient or a weight infinite or NaN; other settings may not."""


class BackendError(SbrrtError, RuntimeError):
    """A named implementation that cannot run these inputs; the message gives its reason."""


class ExtensionError(SbrrtError, ImportError):
    """The C++ ops that are installed do not fit the torch that is installed."""


class OutputError(SbrrtError):
    """A file or folder that cannot be written, or is somebody else's; it names the reason."""


class RankError(SbrrtError):
    """Another process of the run has died, hangs, or cannot be reached."""


class Interrupted(Exception):
    """A signal ended the run after a state was saved; ``status`` is the process's exit status.

    ``is_told`` is that of ``SbrrtError``. It is no ``SbrrtError``: a loop over several runs must
    not go on to the next one.
    """

    is_told = False

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
