"""What an evaluated model is saved as: the last, the best if it is, and among those kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sbrrt_fast.config import LogConfig
from sbrrt_fast.files import make_folder
from sbrrt_fast.training.kept_models import (
    MODELS,
    is_keeping,
    kept_folder,
    kept_rounds,
    remove_models,
)
from sbrrt_fast.training.progress import Progress
from sbrrt_fast.training.run_folder import BEST, LAST
from sbrrt_fast.training.scores.metrics import is_better


def save_evaluated(
    save: Callable[[str], object],
    output: Path,
    progress: Progress,
    scores: dict[str, Any],
    by: float | None,
    log: LogConfig,
    is_writing: bool = True,
) -> None:
    """Saves the model after ``progress.cursor.round`` rounds, and removes those kept no longer.

    Args:
        is_writing: whether this process is the one that saves; else it takes note alone.
        save: writes the model into a folder below ``output``, which it is given the name of.
        progress: takes note of the evaluation.
        scores: with ``overall``; None there where the model was not scored.
        by: the score by which models are chosen, see ``metrics.chosen_by``; it is ``overall`` in
            ``progress.best``.
    """
    done = progress.cursor.round
    is_best = is_better(by, progress.best and progress.best["overall"])
    for name in (LAST, *([BEST] if is_best else [])):
        if is_writing:
            save(name)
    if is_best:
        progress.best = {"overall": by, "round": done, "scores": scores}
    progress.evaluated(by)
    if not is_writing:
        return
    if not is_keeping(log):
        remove_models(output)
        return
    make_folder(output / MODELS)
    save(kept_folder(output, done).relative_to(output).as_posix())
    remove_models(output, kept_rounds(progress.evaluations, log))
