"""A split's rows through a model, batch by batch, shared out among the ranks of a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from heapq import heapreplace

import torch
from torch import Tensor
from tqdm import tqdm

from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.training.ranks.alike import check_same_inputs
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks

TOKENS_PER_BATCH = 4096  # bounds the attention probabilities of 512-token sequences


def computed_rows(
    task: TokenizedTask,
    row_shape: tuple[int, ...],
    compute: Callable[[TokenBatch], Tensor],
    *,
    num_rows: int,
    width: int,
    ranks: Ranks = ONE_RANK,
    progress: bool = False,
) -> Tensor:
    """What ``compute`` makes of the first ``num_rows`` rows, in order, on every rank.

    A batch is computed whole by one rank, so the bits do not depend on how many ranks there are.

    Args:
        row_shape: of what a row gives.
        compute: from a packed batch on the host to [num_rows_of_batch, *row_shape] on any device.
        width: of the model's hidden states; the cost of a batch depends on it.
        ranks: that share the rows out, with a tick after each batch; on all of them the other
            arguments are the same.
        progress: whether a bar is shown; it counts this rank's rows.

    Returns:
        float32 [num_rows, *row_shape] on the CPU.

    Raises:
        SbrrtError: the ranks have read different rows.
    """
    _check_same_rows(ranks, task, num_rows)
    batches = own_batches(task, num_rows, width, ranks)
    rows = torch.full((num_rows, *row_shape), -0.0)  # x + -0.0 is x, also where x is -0.0
    with _bar(task, batches, ranks, progress) as bar, ranks.together(f"predicting {task.name}"):
        for examples in batches:
            rows[examples] = compute(assemble(task, examples)).to("cpu", torch.float32)
            ranks.tick()
            bar.update(len(examples))
    return ranks.sum(rows) if num_rows else rows


def _bar(task: TokenizedTask, batches: Sequence[Tensor], ranks: Ranks, progress: bool) -> tqdm:
    whose = "" if ranks.size == 1 else f", rank {ranks.rank} of {ranks.size}"
    desc, total = f"{task.name} {task.split}{whose}", sum(map(len, batches))
    return tqdm(total=total, desc=desc, disable=not progress)


def _check_same_rows(ranks: Ranks, task: TokenizedTask, num_rows: int) -> None:
    if ranks.size == 1:
        return
    rows = {
        "num_rows": num_rows,
        **{name: zlib.crc32(task.arrays[name].data) for name in ("tokens", "starts")},
    }
    check_same_inputs(ranks, {f"the {task.split} split of task '{task.name}'": rows})


def own_batches(task: TokenizedTask, num_rows: int, width: int, ranks: Ranks) -> list[Tensor]:
    """Those of ``length_batches`` that are this rank's; all ranks end at about the same time."""
    batches = length_batches(task, num_rows)
    if ranks.size == 1:
        return batches
    costs = _costs(task, batches, width)
    return [batches[number] for number in deal(costs, ranks.size)[ranks.rank]]


def deal(costs: Sequence[int], num_hands: int) -> list[list[int]]:
    """Numbers of the costs in hands of about the same sum, each in ascending order.

    The largest cost comes first, and each goes to the hand that has least.
    """
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    sums = [(0, hand) for hand in range(num_hands)]  # a heap
    for number in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least, hand = sums[0]
        hands[hand].append(number)
        heapreplace(sums, (least + costs[number], hand))
    return [sorted(hand) for hand in hands]


def _costs(task: TokenizedTask, batches: Sequence[Tensor], width: int) -> list[int]:
    """A layer multiplies 12 width^2 + 2 length * width numbers per token: this over 2 width."""
    lengths = task.lengths.view(-1, task.config.sequences_per_example)
    of_rows = (lengths * (6 * width + lengths)).sum(dim=1)
    return [int(of_rows[examples].sum()) for examples in batches]


def length_batches(task: TokenizedTask, num_rows: int) -> list[Tensor]:
    """Examples of similar length together, at most TOKENS_PER_BATCH padded tokens a batch."""
    each = task.config.sequences_per_example
    longest = task.lengths.view(-1, each).amax(dim=1)[:num_rows]
    order = torch.argsort(longest, stable=True)
    ascending = longest[order].tolist()
    batches, start = [], 0
    while start < num_rows:
        stop = start + 1
        while stop < num_rows and (stop + 1 - start) * each * ascending[stop] <= TOKENS_PER_BATCH:
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches
