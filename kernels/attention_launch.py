"""How attention's kernels are launched: in what blocks, with how many warps, per shape class.

A pure function of pass, longest sequence and dtype over ``launch_table``; ``aot`` shows what the
chosen blocks need of a chip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .launch_table import TABLE

TILES = (16, 32, 64, 128)
"""Keys of a tile that holds the longest sequence; a matrix product takes no fewer than 16."""

_LONGEST_UNALIGNED_TILE = 64  # two Philox blocks per four words spill in a larger one


@dataclass(frozen=True)
class Blocks:
    """Blocks of a launch.

    Attributes:
        query: queries of a program, or of one turn of its loop.
        key: likewise keys.
        num_warps: per program.
        num_stages: loads that a loop has under way; None for a tile, which has no loop.
    """

    query: int
    key: int
    num_warps: int
    num_stages: int | None = None

    @property
    def is_tile(self) -> bool:
        return self.num_stages is None

    def constants(self) -> dict[str, int]:
        """What the kernel takes by name."""
        blocks = {"BLOCK_QUERY": self.query, "BLOCK_KEY": self.key, "num_warps": self.num_warps}
        return blocks | {"num_stages": self.num_stages or 1}


def class_name(direction: str, dtype: torch.dtype, tile: int | None) -> str:
    """The table's name of a pass: of a tile with so many keys, or None for a loop."""
    kind = "loop" if tile is None else f"tile {tile}"
    return f"attention {direction} {8 * dtype.itemsize}-bit {kind}"


def choose(
    direction: str, max_length: int, dtype: torch.dtype, unaligned: bool = False
) -> Blocks | None:
    """The blocks of a pass; a loop's where the table has no tile for the longest sequence.

    Args:
        direction: ``forward``, ``jvp``, ``backward``; for a loop, the last is ``backward_query`` or
            ``backward_key``, and ``backward`` is None.
        max_length: of the batch's sequences.
        dtype: of queries, keys and values.
        unaligned: whether dropout's rows start at indices that are not multiples of 4.
    """
    largest = _LONGEST_UNALIGNED_TILE if unaligned else TILES[-1]
    tile = next((tile for tile in TILES if max_length <= tile <= largest), None)
    names = class_name(direction, dtype, tile), class_name(direction, dtype, None)
    found = next((TABLE[name] for name in names if name in TABLE), None)
    return found and Blocks(**found.constants)
