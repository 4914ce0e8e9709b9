"""The figure of a search: its history, what the settings are worth, and every setting's values."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from sbrrt_fast.experiments.search.space import Range, Setting
from sbrrt_fast.experiments.search.study import SharedStudy

_COLUMNS = 4
_FEWEST = 4  # finished trials from which importances are told
_NUM_TICKS = 4  # of a logarithmic scale
_FINISHED, _PRUNED = "C0", "0.6"


def search_figure(shared: SharedStudy) -> Figure:
    """Panels for the history, importances, and a slice per setting."""
    settings, trials = shared.plan.space.settings, shared.trials
    num_panels = 2 + len(settings)
    num_rows = -(-num_panels // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.2 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel()
    _draw_history(axes[0], shared)
    _draw_importances(axes[1], importances(shared), [s.key for s in settings])
    for panel, setting in zip(axes[2:], settings, strict=False):
        _draw_slice(panel, setting, shared.plan.space, trials)
        panel.set(title=setting.key, ylabel=shared.plan.objective.name)
    for panel in axes[num_panels:]:
        panel.set_axis_off()
    figure.suptitle(f"{shared.plan.folder.name}: dev {shared.plan.objective.name}")
    return figure


def importances(shared: SharedStudy) -> dict[str, float]:
    """Each setting's share, by PED-ANOVA; empty where too few trials are finished to tell."""
    values = {t.value for t in shared.trials if t.state == TrialState.COMPLETE}
    if len(values) < _FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(shared.study, evaluator=evaluator)


def _draw_history(axes, shared: SharedStudy) -> None:
    """Finished trials as dots with the best so far as a line; pruned ones at their last score."""
    trials, is_lower = shared.trials, shared.plan.objective.is_lower_better
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    numbers = [t.number + 1 for t in finished]
    values = [t.value for t in finished]
    best = list(itertools.accumulate(values, min if is_lower else max))
    axes.scatter(numbers, values, s=16, color=_FINISHED, label="finished")
    axes.step(numbers, best, where="post", color="C1", label="best so far")
    if pruned := [t for t in trials if t.state == TrialState.PRUNED and t.value is not None]:
        points = [t.number + 1 for t in pruned], [t.value for t in pruned]
        axes.scatter(*points, marker="x", s=16, color=_PRUNED, label="pruned, last score")
    axes.set(title="trials", xlabel="trial", ylabel=shared.plan.objective.name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")


def _draw_importances(axes, shares: dict[str, float], keys: Sequence[str]) -> None:
    title = "importance (PED-ANOVA)"
    if not shares:
        axes.set_axis_off()
        axes.set_title(title)
        axes.text(0.5, 0.5, "too few finished trials to tell", ha="center", va="center")
        return
    ordered = sorted(keys, key=lambda key: shares.get(key, 0.0))
    axes.barh(ordered, [shares.get(key, 0.0) for key in ordered], color=_FINISHED)
    axes.tick_params(axis="y", labelsize="small")
    axes.set(title=title, xlim=(0, 1))


def _draw_slice(axes, setting: Setting, space: Any, trials: Sequence[FrozenTrial]) -> None:
    """The scores of finished and pruned trials over one setting."""
    kinds = ((TrialState.PRUNED, "x", _PRUNED), (TrialState.COMPLETE, "o", _FINISHED))
    if isinstance(setting, Range):
        _scale(axes, setting)
    else:
        axes.set_xticks(range(len(setting.values)), [_label(v) for v in setting.values])
        axes.set_xlim(-0.5, len(setting.values) - 0.5)
    for state, marker, color in kinds:
        points = [
            (_place(setting, space.values(t.params)[setting.key]), t.value)
            for t in trials
            if t.state == state and t.value is not None and setting.key in t.params
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, s=16, color=color)


def _scale(axes, setting: Range) -> None:
    """The whole range that is searched, with a margin."""
    if not setting.log:
        margin = 0.05 * (setting.high - setting.low)
        axes.set_xlim(setting.low - margin, setting.high + margin)
        return
    factor = (setting.high / setting.low) ** 0.05
    axes.set_xscale("log")
    axes.set_xlim(setting.low / factor, setting.high * factor)
    places = [float(f"{x:.1g}") for x in np.geomspace(setting.low, setting.high, _NUM_TICKS)]
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.set_xticks([], minor=True)


def _place(setting: Setting, value: Any) -> float:
    return value if isinstance(setting, Range) else setting.values.index(value)


def _label(value: Any) -> str:
    return str(value)[:16]
