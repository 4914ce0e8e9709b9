"""Functions run by several processes of one group, on parts of one batch."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sbrrt_fast.smart.regularizer import Around


def in_processes(world_size: int, function: Callable, *arguments) -> None:
    """Runs ``function(rank, world_size, *arguments)`` in each process, under gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = (world_size, port, function, arguments)
    torch.multiprocessing.spawn(_call, call, nprocs=world_size)


def _call(rank: int, world_size: int, port: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    values = (rank, rank, world_size, world_size, 0, "127.0.0.1")
    os.environ.update(zip(names, map(str, values), strict=True))
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    try:
        function(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()


def noise_of_examples(patch: Callable = setattr) -> None:
    """Draws of ascents depend on the examples alone, not on whose they are."""
    noise = lambda around, given: torch.sin(50.0 * around.clean.embeddings.detach())  # noqa: E731
    patch(Around, "_noise", noise)


def own(rank: int, world_size: int, size: int) -> slice:
    """The examples of a process, of so many."""
    part = size // world_size
    return slice(rank * part, (rank + 1) * part)


def gradients(model: nn.Module) -> list[Tensor]:
    grads = [p.grad for p in model.parameters()]
    pairs = zip(grads, model.parameters(), strict=True)
    return [torch.zeros_like(p) if g is None else g.clone() for g, p in pairs]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The norm of their difference over that of ``theirs``."""
    ours, theirs = (torch.cat([x.detach().flatten() for x in xs]) for xs in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()
