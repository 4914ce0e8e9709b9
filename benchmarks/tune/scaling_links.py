"""What a message among GPUs costs: links by their vendors' figures, nothing is measured.

A node has 8 GPUs. In it every GPU sends and receives 450 GB/s at once: NVLink of an H100 or H200 is
900 GB/s, both directions together, by NVIDIA's datasheets. Between nodes every GPU has its own port
of InfiniBand with 400 Gb/s, as in NVIDIA's DGX H100 and H200: 50 GB/s. Latencies are the ones by
which NCCL chooses an algorithm (``src/graph/tuning.cc`` of its public source, protocol LL128):
10 us for a collective, 1.9 us for a step of a ring over NVLink, 8.5 us for a level of a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2


@dataclass(frozen=True)
class Links:
    """What connects the GPUs; a ring in each node, and a tree of nodes for every GPU's place.

    Attributes:
        nvlink, network: bytes per second that one GPU sends, and as many that it receives.
        per_node: GPUs of a node. collective, hop, level: seconds of a message, whatever its size:
            at all, for each step of the ring in a node, for each level of the tree.
    """

    nvlink: float = 450e9
    network: float = 50e9
    per_node: int = 8
    collective: float = 10e-6
    hop: float = 1.9e-6
    level: float = 8.5e-6

    def all_reduce(self, num_bytes: float, num_gpus: int) -> float:
        """Seconds until every GPU has the sum of all; the two kinds of links work at once."""
        return 2 * self.half(num_bytes, num_gpus) - self.collective * (num_gpus > 1)

    def half(self, num_bytes: float, num_gpus: int) -> float:
        """Seconds of a reduce-scatter or of an all-gather of so many bytes in all."""
        if num_gpus == 1:
            return 0.0
        local, nodes = min(num_gpus, self.per_node), ceil(num_gpus / self.per_node)
        steps = self.hop * (local - 1) + self.level * log2(nodes)
        return self.collective + steps + self._wire(num_bytes, local, nodes)

    def _wire(self, num_bytes: float, local: int, nodes: int) -> float:
        within = num_bytes * (local - 1) / local / self.nvlink
        between = num_bytes / local * (nodes - 1) / nodes / self.network
        return max(within, between)
