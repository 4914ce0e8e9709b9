"""Whether all ranks of a run have the same inputs, and the same weights bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.training.progress import MAY_DIFFER
from sbrrt_fast.training.ranks.ranks import Ranks

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def settings_of_run(config: RunConfig) -> dict[str, str]:
    """The settings in which ranks may not differ, by a name for messages."""
    leaves = config_leaves(config).items()
    return {f"setting '{key}'": str(value) for key, value in leaves if key not in MAY_DIFFER}


def check_same_inputs(ranks: Ranks, inputs: Mapping[str, Any]) -> None:
    """Compares what every rank has read or was told.

    Args:
        inputs: JSON values by a name for messages.

    Raises:
        SbrrtError: on all ranks, naming one whose inputs are others, and the first of them.
    """
    with ranks.together("comparing inputs"):
        if other := _other(ranks.gather(dict(inputs))):
            rank, name = other
            raise SbrrtError(
                f"rank {rank}: {name} is not that of the other ranks; give all of them the same "
                "files and settings"
            )


def check_same_tensors(ranks: Ranks, tensors: Mapping[str, Tensor], round: int) -> None:
    """Compares the bits of tensors, such as weights, by a sum for each; the host waits for them.

    Args:
        tensors: by name, any dtypes and shapes. round: rounds done, for messages.

    Raises:
        SbrrtError: on all ranks, naming one whose tensors are others, and the first of them.
    """
    if ranks.size == 1:
        return
    with ranks.together("comparing weights"):
        if other := _other(ranks.gather(bit_sums(tensors))):
            rank, name = other
            raise SbrrtError(
                f"rank {rank}: after round {round} its '{name}' has not the bits of the other "
                "ranks, so they train no one run any more; give all ranks the same kind of "
                "processor or GPU and the same versions, and go on from the last state with "
                "--resume"
            )


def bit_sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Each tensor's bits as whole numbers of its width, summed modulo 2**64."""
    sums = {name: _bit_sum(x.detach()) for name, x in tensors.items()}
    read: dict[str, int] = {}
    for device in {x.device for x in sums.values()}:
        here = {name: x for name, x in sums.items() if x.device == device}
        read.update(zip(here, torch.stack(list(here.values())).tolist(), strict=True))
    return {name: read[name] for name in tensors}


def _bit_sum(x: Tensor) -> Tensor:
    return x.view(_INTEGERS[x.element_size()]).sum(dtype=torch.int64)


def _other(values: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The first rank and name whose value differs from that of most ranks."""
    for name in dict.fromkeys(name for value in values for name in value):
        texts = [repr(value.get(name)) for value in values]
        most = max(Counter(texts).items(), key=lambda pair: pair[1])[0]  # of as many, rank 0's
        for rank, text in enumerate(texts):
            if text != most:
                return rank, name
    return None
