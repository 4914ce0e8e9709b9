"""Dev scores of a run: of the model while it is trained, and of the best one at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.model.io import load_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.progress import Progress
from sbrrt_fast.training.ranks.agreement import from_first
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.run_folder import BEST
from sbrrt_fast.training.scores.evaluate import score_tasks
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of
from sbrrt_fast.training.stopping import StopSignals


@dataclass
class DevEvaluator:
    """Evaluates models of a run on its dev splits; a signal gives an evaluation up.

    Attributes:
        config: the run's. tasks: its dev splits. stop: its signals.
        ranks: that share evaluations out; all of them call the methods, and get the same scores.
        scored: rows of the last evaluation. best: of that of the best model; empty where it was
            made by a process before this one.
    """

    config: RunConfig
    tasks: dict[str, TokenizedTask]
    stop: StopSignals
    ranks: Ranks = ONE_RANK
    scored: dict[str, ScoredTask] = field(default_factory=dict)
    best: dict[str, ScoredTask] = field(default_factory=dict)

    def scores(self, model: MultiTaskModel, progress: Progress, limit: int | None) -> dict:
        """On the first ``limit`` rows of each split, all if None."""
        with self.stop.stoppable(), progress.evaluating():
            self.scored = score_tasks(
                model,
                self.tasks,
                precision=self.config.precision,
                packed=self.config.layout == "packed",
                limit=limit,
                progress=self.ranks.is_first,
                ranks=self.ranks,
            )
        return from_first(self.ranks, "scoring the dev rows", lambda: scores_of(self.scored))

    def final_scores(
        self,
        progress: Progress,
        device: torch.device,
        scores_of_model: Callable[[MultiTaskModel, int | None], dict[str, Any]],
    ) -> dict[str, Any]:
        """The best model's, on all dev rows; ``best`` then has the rows.

        It is evaluated unless that was just done; the first rank must have written it by then.
        Where the final evaluation is left out, its scores are those of training, and there are no
        rows.
        """
        log = self.config.log
        if self.config.skip_final_evaluation:
            self.best = {}
        if self.config.skip_final_evaluation or (self.best and log.dev_rows is None):
            return progress.best["scores"]
        with self.ranks.together("reading the best model"), self.ranks.patient():
            model, _ = load_model(self.config.output / BEST)
        model.encoder.set_backend(self.config.backend)
        scores = scores_of_model(model.to(device), None)
        self.best = self.scored
        return scores
