"""torch.compile as a comparison needs it: no silent way back to eager, and nothing left to compile.

By itself torch.compile runs a function eagerly from its eighth recompilation on. Here the limit is
so high that a comparison does not meet it, and one that does is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import _dynamo as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from benchmarks.harness.benchmark import Absent

MOST_GRAPHS = 64  # of one function
MOST_PASSES = 4
T = TypeVar("T")


def compiled(function: Callable, **options) -> Callable:
    """The whole function as a graph, for sizes that may change; it never runs eagerly.

    Args:
        options: of torch.compile, such as ``mode``.

    Returns:
        The compiled function. A call raises Absent where torch would run it eagerly.
    """
    dynamo.config.specialize_float = True  # a probability of dropout is no size
    dynamo.config.recompile_limit = MOST_GRAPHS
    dynamo.config.fail_on_recompile_limit_hit = True
    graph = torch.compile(function, dynamic=True, fullgraph=True, **options)

    def call(*args):
        try:
            return graph(*args)
        except FailOnRecompileLimitHit:
            raise Absent(f"torch.compile met its limit of {MOST_GRAPHS} recompilations") from None

    return call


def num_graphs() -> int:
    """That torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def num_without_graphs() -> int:
    """Calls that were to be replayed as CUDA graphs, and are not."""
    return counters["inductor"]["cudagraph_skips"]


def settle(call: Callable[[], object], num_calls: int) -> None:
    """Makes calls until so many in a row, all that there are, compile nothing.

    Raises:
        Absent: they go on compiling, or torch.compile is switched off.
    """
    quiet = 0
    for _ in range(MOST_PASSES * num_calls):
        before = num_graphs()
        call()
        quiet = quiet + 1 if num_graphs() == before else 0
        if quiet == num_calls:
            break
    else:
        raise Absent(f"torch.compile still compiles after {MOST_PASSES * num_calls} calls")
    if not num_graphs():
        raise Absent("torch.compile has compiled nothing: it is switched off")


class Watched:
    """A settled call, which notes what would make its time that of something else.

    Attributes:
        refusal: why its times do not count, or "".
    """

    def __init__(self, call: Callable[[], T]):
        self._call, self.refusal = call, ""

    def __call__(self) -> T:
        before = num_graphs(), num_without_graphs()
        result = self._call()
        if num_graphs() != before[0]:
            self.refusal = "torch.compile compiled again while it was timed"
        if num_without_graphs() != before[1]:
            self.refusal = "torch.compile ran a part without CUDA graphs"
        return result
