"""What a report takes from ``metrics.json``, by type."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sbrrt_fast.errors import SbrrtError

TaskScores = dict[str, float | str | None]  # a reason is a text


@dataclass(frozen=True)
class SavedEnvironment:
    """See ``training.environment.run_environment``."""

    versions: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    processor: str | None = None
    threads: int | None = None
    gpu: str | None = None
    cores: int | None = None
    other_cores: float | None = None
    finished: str | None = None


@dataclass(frozen=True)
class SavedProfile:
    """See ``training.cost.profile.Profile.to_dict``."""

    seconds: dict[str, float] = field(default_factory=dict)
    floor_seconds: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedMetrics:
    """The result of a run; what an older version did not write is empty or None."""

    dev: dict[str, TaskScores | float | None]
    intervals: dict[str, dict[str, tuple[float, float] | None]] = field(default_factory=dict)
    rounds: int | None = None
    best_round: int | None = None
    rounds_per_second: float | None = None
    train_seconds: float | None = None
    evaluation_seconds: float | None = None
    skipped_updates: int = 0
    environment: SavedEnvironment | None = None
    profile: SavedProfile | None = None


def read_metrics(path: Path) -> SavedMetrics | None:
    """The file's values; None where there is no such file.

    Raises:
        SbrrtError: it cannot be read, or a value in it has another type.
    """
    try:
        return TypeAdapter(SavedMetrics).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ".".join(map(str, first["loc"])) + ": " + first["msg"]
    raise SbrrtError(
        f"{path}: is not what training wrote ({reason.removeprefix(': ')}); restore it from a "
        "copy, or train the run again"
    )
