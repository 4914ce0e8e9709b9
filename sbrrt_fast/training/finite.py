"""Checks that a run is finite: before it is trained, while it is, and before a save.

Losses, the gradients' norm and weights stop a run. A diagnostic (gain, perturbation) that cannot be
computed does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sbrrt_fast.errors import DivergedError, WeightsError
from sbrrt_fast.training.means import IntervalMeans

STOPPING = ("loss", "smart", "bregman", "total", "gradient_norm")
_ADVICE = (
    "lower optimizer.learning_rate, smart.radius or smart.weight, or keep optimizer.clip_norm "
    "above 0"
)


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating tensors that hold an infinity or NaN; the host waits once a device."""
    floating = {name: x.detach() for name, x in tensors.items() if x.is_floating_point()}
    nonfinite: set[str] = set()
    for device in {x.device for x in floating.values()}:
        here = {name: x for name, x in floating.items() if x.device == device}
        are_finite = torch.stack([torch.isfinite(x).all() for x in here.values()]).tolist()
        pairs = zip(here, are_finite, strict=True)
        nonfinite |= {name for name, is_finite in pairs if not is_finite}
    return [name for name in floating if name in nonfinite]


def check_loaded(tensors: Mapping[str, Tensor], where: object, advice: str) -> None:
    """Refuses weights that were not finite when they were read.

    Args:
        tensors: by name. where: the folder they are from, or a name for them. advice: what to do.

    Raises:
        WeightsError: naming ``where`` and the first tensor with an infinity or NaN.
    """
    if not (names := nonfinite_names(tensors)):
        return
    first = tensors[names[0]].detach()
    num_bad = int((~torch.isfinite(first)).sum())
    more = f", and so are {len(names) - 1} other tensors" if len(names) > 1 else ""
    raise WeightsError(
        f"{where}: '{names[0]}' is not finite ({num_bad:,} of {first.numel():,} numbers are nan or "
        f"infinite){more}; {advice}"
    )


def check_trained(tensors: Mapping[str, Tensor], round: int) -> None:
    """Comes before a save, after ``round`` rounds.

    Args:
        tensors: weights, and what else is to be saved, by name.

    Raises:
        DivergedError: naming the round and the first tensor with an infinity or NaN.
    """
    if names := nonfinite_names(tensors):
        more = f", and so are {len(names) - 1} other tensors" if len(names) > 1 else ""
        raise DivergedError(
            f"round {round}: training made '{names[0]}' infinite or nan{more}; this is not saved, "
            f"and what was saved before stays; {_ADVICE}"
        )


def is_stopping(name: str) -> bool:
    """Whether a term, such as ``sst/loss``, has to be finite; a diagnostic may be anything."""
    return name.rpartition("/")[2] in STOPPING


def check_terms(values: Mapping[str, float], round: int) -> None:
    """Raises DivergedError naming the first term of a round that has to be finite and is not."""
    for name, value in values.items():
        if is_stopping(name) and not math.isfinite(value):
            raise DivergedError(
                f"round {round}: {name} is {value}, so training cannot go on; {_ADVICE}"
            )


def check_interval(
    interval: IntervalMeans, num_skipped: int, round: int, weights: Mapping[str, Tensor]
) -> None:
    """Stops a run at a logging step where something was not finite since the last one.

    Args:
        interval: read. num_skipped: updates that were left out in it. round: rounds done.
        weights: by name; looked at only where something was not finite.

    Raises:
        DivergedError: naming the first term that has to be finite and is not, and what to do.
    """
    terms = [name for name, n in interval.num_nonfinite.items() if n and is_stopping(name)]
    if not terms and not num_skipped:
        return
    if terms:
        count, num_rounds = interval.num_nonfinite[terms[0]], interval.num_rounds
        what = f"{terms[0]} is not finite in {count} of the last {num_rounds} rounds"
    else:
        what = f"the gradients' norm of {num_skipped} updates since the last line is not finite"
    if names := nonfinite_names(weights):
        what += f", and training made '{names[0]}' infinite or nan"
    elif terms and count == interval.num_values[terms[0]] and num_rounds == round:
        what += (
            ", from the first on: the weights of backbone or losses may be too large for float32"
        )
    raise DivergedError(
        f"round {round}: {what}, so training cannot go on; {_ADVICE}, or leave such updates out "
        "with on_nonfinite skip"
    )
