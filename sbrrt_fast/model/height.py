"""How high in the encoder a parameter is, by its name.

The embeddings have height 0, layer i (from 0) has i + 1. What is above all layers has none: the
pooler, a last LayerNorm, the heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sbrrt_fast.errors import ConfigError

_HEADS = "heads."
_LAYER = re.compile(r"\.(?:layers?|blocks?|h)\.(\d+)\.")  # the outermost counts


def height_of(name: str) -> int | None:
    """Of a parameter of a ``MultiTaskModel``, or of an adapter in it; None above all layers."""
    if name.startswith(_HEADS):
        return None
    if layer := _LAYER.search(name):
        return int(layer[1]) + 1
    return 0 if "embed" in name else None


def num_layers(names: Iterable[str], key: str) -> int:
    """The encoder's number of layers, from the names of all parameters.

    Args:
        key: of the setting that needs it.

    Raises:
        ConfigError: no name has the number of a layer.
    """
    count = max((height_of(name) or 0 for name in names), default=0)
    if count == 0:
        raise ConfigError(
            f"{key}: goes by the encoder's layers, and this encoder has none of its own (its "
            "parameters are not called layer.0, layer.1, ...); leave it out or use another backbone"
        )
    return count
