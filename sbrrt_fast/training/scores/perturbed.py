"""Scores on perturbed texts beside those on the texts as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from sbrrt_fast.data.perturb import Perturbation
from sbrrt_fast.data.perturbed import Perturbing, num_different, perturbed_task
from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.messages import columns
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.scores.evaluate import score_tasks
from sbrrt_fast.training.scores.metrics import UNDEFINED
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of

_DASH = "—"


@dataclass(frozen=True)
class PerturbedScores:
    """A split with one perturbation.

    Attributes:
        name: of the perturbation.
        scores: see ``scores_of``.
        rows_changed: by task, how many rows have other tokens than before.
    """

    name: Perturbation
    scores: dict[str, Any]
    rows_changed: dict[str, int]


def score_perturbed(
    model: MultiTaskModel,
    tokenizer: Tokenizer,
    scored: Mapping[str, ScoredTask],
    name: Perturbation,
    settings: Perturbing,
    max_length: int,
    *,
    ranks: Ranks = ONE_RANK,
    **options: Any,
) -> PerturbedScores:
    """Scores the rows of ``scored`` with perturbed texts.

    A task none of whose rows has other tokens is not computed again.

    Args:
        tokenizer: the model's. max_length: tokens after which a sequence is cut.
        scored: the rows with their texts as they are.
        ranks, options: keyword arguments of ``predict_outputs``.

    Raises:
        WeightsError, SbrrtError: as of ``score_tasks``.
    """
    with ranks.together("perturbing texts"), ranks.patient():
        tasks = {
            task: perturbed_task(one.task, name, settings, tokenizer, max_length, one.num_examples)
            for task, one in scored.items()
        }
        changed = {task: num_different(scored[task].task, t) for task, t in tasks.items()}
    computed = score_tasks(
        model, {task: t for task, t in tasks.items() if changed[task]}, ranks=ranks, **options
    )
    rows = {task: computed.get(task, one) for task, one in scored.items()}
    return PerturbedScores(name, scores_of(rows), changed)


def perturbed_table(
    scored: Mapping[str, ScoredTask], results: Sequence[PerturbedScores], settings: Perturbing
) -> str:
    """A row per perturbation, task and metric, and the overall scores, with their differences."""
    clean = scores_of(scored)
    rows = [("perturbed", "task", "metric", "score", "as it is", "difference", "rows changed")]
    for result in results:
        for task, metric, before, after in _pairs(clean, result.scores):
            change = "" if task == OVERALL else _changed(result, task, scored)
            difference = _DASH if None in (before, after) else f"{after - before:+.4f}"
            numbers = (_number(after), _number(before), difference)
            rows.append((result.name, task, metric, *numbers, change))
    title = f"perturbed texts: rate {settings.rate:g}, seed {settings.seed}, labels as they are"
    return "\n".join([title, *(f"  {line}" for line in columns(rows))])


def perturbed_record(
    scored: Mapping[str, ScoredTask], results: Sequence[PerturbedScores], settings: Perturbing
) -> dict[str, Any]:
    """The table as JSON values; a difference is None where a score is undefined."""
    clean = scores_of(scored)
    return {
        "rate": settings.rate,
        "seed": settings.seed,
        "scores": {result.name: result.scores for result in results},
        "differences": {result.name: _differences(clean, result.scores) for result in results},
        "rows_changed": {result.name: result.rows_changed for result in results},
    }


def perturbed_notes(settings: Perturbing, tokenizer: Tokenizer) -> list[str]:
    """What must be said beside the scores."""
    normalizer = tokenizer.normalizer
    is_lower = normalizer is not None and normalizer.normalize_str("A") == "a"
    if "case" in settings.names and is_lower:
        return ["case changes next to nothing: the model's tokenizer puts texts into lower case"]
    return []


def _pairs(clean: Mapping[str, Any], perturbed: Mapping[str, Any]) -> list[tuple]:
    """(task, metric, score before, score after); the overall score has no metric."""
    pairs = []
    for task, before in clean.items():
        after = perturbed[task]
        if task == OVERALL:
            pairs.append((task, "", before, after))
        else:
            names = [metric for metric in before if metric != UNDEFINED]
            pairs += [(task, metric, before[metric], after[metric]) for metric in names]
    return pairs


def _differences(clean: Mapping[str, Any], perturbed: Mapping[str, Any]) -> dict[str, Any]:
    differences: dict[str, Any] = {}
    for task, metric, before, after in _pairs(clean, perturbed):
        difference = None if None in (before, after) else after - before
        if task == OVERALL:
            differences[task] = difference
        else:
            differences.setdefault(task, {})[metric] = difference
    return differences


def _changed(result: PerturbedScores, task: str, scored: Mapping[str, ScoredTask]) -> str:
    return f"{result.rows_changed[task]:,} of {scored[task].num_examples:,}"


def _number(score: float | None) -> str:
    return _DASH if score is None else f"{score:.4f}"
