"""How attention's kernels are launched: in what blocks, with how many warps, per shape class.

A pure function of pass, longest sequence, head dimension and dtype; ``aot`` shows what the chosen
blocks need of a chip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILES = (16, 32, 64, 128)
"""Keys of a tile that holds the longest sequence; a matrix product takes no fewer than 16."""


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


# A warp per 16 queries, so that sums over keys stay within a warp; float32 products, which have no
# matrix instructions, take more warps to fit in registers. Blocks are as large as they can be
# without spills on sm_80 and sm_90: of a tile of 128 keys a warp holds 64 registers per matrix,
# which the tangent's two leave no room for. Chosen by ``aot``'s counts; not timed on a GPU.
_TILES = {
    ("forward", 2): (Blocks(16, 16, 1), Blocks(32, 32, 2), Blocks(64, 64, 4), Blocks(64, 128, 4)),
    ("backward", 2): (Blocks(16, 16, 1), Blocks(32, 32, 2), Blocks(64, 64, 4), Blocks(128, 128, 8)),
    ("jvp", 2): (Blocks(16, 16, 1), Blocks(32, 32, 2), Blocks(64, 64, 4)),
    ("forward", 4): (Blocks(16, 16, 2), Blocks(32, 32, 4)),
    ("backward", 4): (Blocks(16, 16, 2), Blocks(32, 32, 8)),
    ("jvp", 4): (Blocks(16, 16, 2), Blocks(32, 32, 8)),
}
_LOOPS = {
    ("forward", 2): Blocks(64, 64, 4, 2),
    ("backward_query", 2): Blocks(64, 32, 4, 2),
    ("backward_key", 2): Blocks(32, 64, 4, 2),
    ("jvp", 2): Blocks(64, 32, 4, 2),
    ("forward", 4): Blocks(32, 32, 8, 1),
    ("backward_query", 4): Blocks(32, 32, 8, 1),
    ("backward_key", 4): Blocks(32, 32, 8, 2),
    ("jvp", 4): Blocks(32, 32, 8, 1),
}
_LONGEST_UNALIGNED_TILE = 64  # two Philox blocks per four words spill in a larger one


def choose(
    direction: str, max_length: int, dtype: torch.dtype, unaligned: bool = False
) -> Blocks | None:
    """The blocks of a pass.

    Args:
        direction: ``forward``, ``jvp``, ``backward``; for a loop, the last is ``backward_query`` or
            ``backward_key``, and ``backward`` is None.
        max_length: of the batch's sequences.
        dtype: of queries, keys and values.
        unaligned: whether dropout's rows start at indices that are not multiples of 4.
    """
    for blocks in _TILES.get((direction, dtype.itemsize), ()):
        if max_length <= blocks.key and not (unaligned and blocks.key > _LONGEST_UNALIGNED_TILE):
            return blocks
    return _LOOPS.get((direction, dtype.itemsize))
