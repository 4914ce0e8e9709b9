"""What a search leaves in its folder: tables of the trials, the best recipe, a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sbrrt_fast.checksums import remove_directory
from sbrrt_fast.config_io import recipe_text
from sbrrt_fast.experiments.search.plan import Plan
from sbrrt_fast.experiments.search.study import SharedStudy, states
from sbrrt_fast.files import write_json, write_text
from sbrrt_fast.training.kept_models import remove_models
from sbrrt_fast.training.logging import json_values
from sbrrt_fast.training.run_folder import BEST, LAST, STATE

TRIAL, TABLE, CSV, RECIPE, FIGURE = (
    "trial.json",
    "trials.json",
    "trials.csv",
    "best.yaml",
    "search.png",
)
WORDS = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_HEAD = ("number", "state", "value", "seconds")
_TAIL = ("reason",)


def trial_record(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    """A trial as JSON values."""
    told = trial.user_attrs
    return {
        "number": trial.number + 1,
        "state": WORDS[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "scores": told.get("scores", {}),
        "settings": json_values(plan.space.values(trial.params)),
        "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "seconds": told.get("seconds"),
        "reason": told.get("reason"),
    }


def write_results(shared: SharedStudy, draws: bool = True) -> None:
    """Writes everything anew, in a block that this process is alone in.

    The folders of trials that have ended say how, and the weights of all but the best are removed
    unless the plan keeps them. Called again after a kill it makes up for what was left out.

    Args:
        draws: also the figure.
    """
    plan, trials, best = shared.plan, shared.trials, shared.best
    records = [trial_record(plan, trial) for trial in trials]
    for trial, record in zip(trials, records, strict=True):
        _mark(plan, record)
        if trial.state.is_finished() and trial != best and not plan.keeps_models:
            _remove_weights(plan.trial_folder(trial.number + 1))
    write_json(plan.folder / TABLE, {**_summary(shared), "trials": records})
    write_text(plan.folder / CSV, _as_csv(plan, records))
    if best is not None:
        write_text(plan.folder / RECIPE, best_recipe(shared, best))
    if best is not None and draws:
        _draw(shared, plan.folder / FIGURE)


def best_recipe(shared: SharedStudy, best: FrozenTrial) -> str:
    """The best trial's settings as YAML that trains from anywhere, and what they are worth."""
    plan = shared.plan
    settings = plan.space.values(best.params)
    seeds = best.user_attrs["scores"]
    seeds = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"
    lines = [
        f"Trial {best.number + 1}, the best of {counted(shared.trials)}: dev {plan.objective.name} "
        f"{best.value:.4f}",
        f"({seeds}; sampler {plan.sampler}, pruner {plan.pruner}). It was chosen by this score, so "
        "expect less on",
        "rows that the search has not seen. What it searched:",
        *(f"  {key}: {json.dumps(value)}" for key, value in settings.items()),
    ]
    return "".join(f"# {line}\n" for line in lines) + recipe_text(plan.recipe(settings))


def counted(trials: Sequence[FrozenTrial]) -> str:
    """``20 trials (12 finished, 8 pruned)``."""
    numbers = states(trials)
    parts = [f"{numbers[state]} {word}" for state, word in WORDS.items() if numbers[state]]
    noun = "trial" if len(trials) == 1 else "trials"
    return f"{len(trials)} {noun} ({', '.join(parts) or 'none begun'})"


def _summary(shared: SharedStudy) -> dict[str, Any]:
    plan, best = shared.plan, shared.best
    return {
        "metric": plan.objective.name,
        "is_lower_better": plan.objective.is_lower_better,
        "best": best and best.number + 1,
        "best_value": best and best.value,
    }


def _mark(plan: Plan, record: Mapping[str, Any]) -> None:
    """Writes a trial's own file, where it says something else."""
    path = plan.trial_folder(record["number"]) / TRIAL
    try:
        is_same = json.loads(path.read_text(encoding="utf-8")) == record
    except (OSError, ValueError):
        is_same = False
    if not is_same and path.parent.is_dir():
        write_json(path, record)


def _remove_weights(folder: Path) -> None:
    """What was logged, scores and predictions stay."""
    for run in folder.glob("seed*"):
        for name in (STATE, BEST, LAST):
            remove_directory(run / name)
        remove_models(run)


def _as_csv(plan: Plan, records: Sequence[Mapping[str, Any]]) -> str:
    keys = [setting.key for setting in plan.space.settings]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEAD, *keys, *_TAIL])
    for record in records:
        settings = [_cell(record["settings"].get(key)) for key in keys]
        writer.writerow([*(record[k] for k in _HEAD), *settings, *(record[k] for k in _TAIL)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | bool) else value


def _draw(shared: SharedStudy, path: Path) -> None:
    from sbrrt_fast.experiments.plots import save_figure  # slow to import
    from sbrrt_fast.experiments.search.plots import search_figure

    save_figure(search_figure(shared), path)
