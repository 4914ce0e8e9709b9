"""Which evaluated models of a run are kept beside ``best`` and ``last``, and where.

With ``log.keep_best`` or ``log.keep_last`` above 1 every evaluated model is saved as
``models/round-<rounds done>`` too, and those that are neither among the best nor among the latest
are removed. What is kept is a function of the evaluations so far, so a resumed run, which makes the
same evaluations again, ends with the same folders.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from sbrrt_fast.checksums import check_directory, readable_directory, remove_directory
from sbrrt_fast.config import LogConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

MODELS = "models"
_NAME = re.compile(r"round-(\d+)")

# Rounds done and the overall dev score, None where it is undefined.
Evaluation = tuple[int, float | None]


def is_keeping(config: LogConfig) -> bool:
    """Whether models are kept beside ``best`` and ``last``."""
    return config.keep_best > 1 or config.keep_last > 1


def max_models(config: LogConfig) -> int:
    """The most that are kept, and one that is being written."""
    return config.keep_best + config.keep_last + 1 if is_keeping(config) else 0


def kept_rounds(evaluations: Sequence[Evaluation], config: LogConfig) -> list[int]:
    """The rounds whose models are kept, in order; of equal scores the earlier is the better."""
    latest = [done for done, _ in evaluations[-config.keep_last :]]
    scored = [(done, score) for done, score in evaluations if score is not None]
    best = sorted(scored, key=lambda pair: (-pair[1], pair[0]))[: config.keep_best]
    return sorted({*latest, *(done for done, _ in best)})


def kept_folder(output: Path, done: int) -> Path:
    """Of the model after ``done`` rounds."""
    return output / MODELS / f"round-{done}"


def kept_folders(output: Path) -> dict[int, Path]:
    """Those on the disk by rounds done, in order; one whose writer was killed included."""
    names = {path.name.removesuffix(".old") for path in (output / MODELS).glob("round-*")}
    rounds = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    return {done: kept_folder(output, done) for done in rounds}


def remove_models(output: Path, keep: Sequence[int] = ()) -> None:
    """Removes the kept models of all other rounds; somebody's own files stay."""
    for done, folder in kept_folders(output).items():
        if done not in keep:
            remove_directory(folder)
    with contextlib.suppress(OSError):
        (output / MODELS).rmdir()


def check_models(output: Path, done: int) -> None:
    """WeightsError naming what is damaged in the models up to ``done`` rounds."""
    for number, folder in kept_folders(output).items():
        if number <= done:
            check_directory(readable_directory(folder))


def model_folder(run: Path, name: str) -> Path:
    """The folder of a run's model: ``best``, ``last``, or one that is kept, ``round-40``.

    Raises:
        ConfigError: there is none of that name; the message has those that there are.
        WeightsError: the run has no such model yet.
    """
    kept = {folder.name: folder for folder in kept_folders(run).values()}
    if name not in ("best", "last", *kept):
        names = ", ".join(["best", "last", *kept])
        raise ConfigError(f"--model: invalid choice '{shown(name)}'; {run} has {names}")
    return readable_directory(kept.get(name, run / name))
