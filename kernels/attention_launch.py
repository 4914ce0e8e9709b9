"""How attention's kernels are launched: in what blocks, with how many warps, per shape class.

A pure function of pass, longest sequence, head dimension and dtype; ``aot`` shows what the chosen
blocks need of a chip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILES = (16, 32, 64, 128)
"""Rows of a tile that holds the longest sequence; a matrix product takes no fewer than 16."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of a launch.

    Attributes:
        query: queries of a program, or of one turn of its loop.
        key: likewise keys; None where one tile holds all of both.
        num_warps: per program.
        num_stages: loads that a loop has under way.
    """

    query: int
    key: int | None
    num_warps: int
    num_stages: int = 1

    @property
    def is_tile(self) -> bool:
        return self.key is None

    def constants(self) -> dict[str, int]:
        """What the kernel takes by name."""
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.is_tile:
            return {"BLOCK": self.query} | launch
        return {"BLOCK_QUERY": self.query, "BLOCK_KEY": self.key} | launch


# (pass, bytes of an element) -> blocks of tiles of 16, 32, 64 and 128
_TILES = {
    ("forward", 2): {16: 1, 32: 2, 64: 4, 128: 8},
    ("backward", 2): {16: 1, 32: 2, 64: 4, 128: 8},
    ("jvp", 2): {16: 1, 32: 2, 64: 4, 128: 8},
    ("forward", 4): {16: 1, 32: 2, 64: 4},
    ("backward", 4): {16: 1, 32: 2, 64: 8},
    ("jvp", 4): {16: 1, 32: 2, 64: 8},
}
_LOOPS = {
    ("forward", 2): Blocks(64, 64, 4, 2),
    ("backward_query", 2): Blocks(64, 64, 4, 2),
    ("backward_key", 2): Blocks(64, 64, 4, 2),
    ("jvp", 2): Blocks(64, 64, 4, 2),
    ("forward", 4): Blocks(32, 32, 4, 1),
    ("backward_query", 4): Blocks(32, 32, 4, 1),
    ("backward_key", 4): Blocks(32, 32, 4, 1),
    ("jvp", 4): Blocks(32, 32, 4, 1),
}


def choose(direction: str, max_length: int, dtype: torch.dtype) -> Blocks:
    """The blocks of a pass.

    Args:
        direction: ``forward``, ``jvp``, ``backward``; for a loop, the last is ``backward_query`` or
            ``backward_key``, and ``backward`` is None.
        max_length: of the batch's sequences.
        dtype: of queries, keys and values.
    """
    for tile in TILES:
        if max_length <= tile and tile in _TILES.get((direction, dtype.itemsize), ()):
            return Blocks(tile, None, _TILES[direction, dtype.itemsize][tile])
    return _LOOPS.get((direction, dtype.itemsize))
