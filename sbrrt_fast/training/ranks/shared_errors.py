"""An exception of one rank as the others hear of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbrrt_fast import errors
from sbrrt_fast.errors import Interrupted, RankError, SbrrtError
from sbrrt_fast.messages import shown
from sbrrt_fast.training.stopping import Stopped

_STOPPED, _OTHER = "Stopped", "other"
_SHARED = "all_ranks_know"  # attribute of an exception that has been told


def is_shared(error: BaseException) -> bool:
    """Whether the other ranks know of an exception, or cannot hear of it."""
    return isinstance(error, RankError | Interrupted) or getattr(error, _SHARED, False)


def mark_shared(error: BaseException, is_told: bool) -> None:
    """Notes that all ranks know; see ``SbrrtError.is_told``."""
    setattr(error, _SHARED, True)
    error.is_told = is_told


def as_record(error: BaseException, rank: int, what: str) -> dict[str, Any]:
    """JSON values for the others.

    Args:
        rank: whose error it is. what: it was doing.
    """
    if isinstance(error, Stopped):
        return {"kind": _STOPPED, "number": error.number}
    if isinstance(error, SbrrtError):
        return {"kind": type(error).__name__, "message": numbered(str(error), rank)}
    return {"kind": _OTHER, "message": numbered(failure_message(error, what), rank)}


def failure_message(error: BaseException, what: str) -> str:
    """One line on an exception that is no SbrrtError."""
    return f"{what} failed ({type(error).__name__}: {shown(error, 300)})"


def numbered(message: str, rank: int) -> str:
    """With the rank's number where it is not the first."""
    return f"rank {rank}: {message}" if rank else message


def first_raised(records: Sequence[Mapping[str, Any] | None]) -> int | None:
    """The rank whose exception ends the block for all; a fault comes before a signal."""
    raised = [rank for rank, record in enumerate(records) if record is not None]
    faults = [rank for rank in raised if records[rank]["kind"] != _STOPPED]
    return next(iter(faults or raised), None)


def from_record(record: Mapping[str, Any], is_first: bool) -> BaseException:
    """The exception to raise on this rank, marked as shared.

    Args:
        is_first: whether this is the first rank, which tells of what all ranks raise alike.
    """
    if record["kind"] == _STOPPED:
        error: BaseException = Stopped(record["number"])
    else:
        kind = getattr(errors, record["kind"], SbrrtError)
        error = kind(record["message"])
    # What is no SbrrtError is told by the rank it comes from.
    mark_shared(error, is_told=not is_first or record["kind"] == _OTHER)
    return error
