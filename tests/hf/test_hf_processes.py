"""Models with the kernels in processes (DDP, FSDP2): stock gradients of a whole batch."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from tests.hf.models import FAMILIES, batch, build, taken
from tests.smart.processes import apart, gradients, in_processes, own

LENGTHS = (11, 5, 11, 8)


def whole_gradients(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.full_tensor() if hasattr(x, "full_tensor") else x for x in tensors]


def backward(around: nn.Module, model: nn.Module, inputs: dict) -> list[torch.Tensor]:
    """Of two rounds: the second finds what wraps the model as the first left it."""
    for _ in range(2):
        model.zero_grad()
        around(**inputs).loss.backward()
    return whole_gradients(gradients(model))


def in_ddp(model: nn.Module, world_size: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def in_fsdp(model: nn.Module, world_size: int) -> nn.Module:
    """Each layer, as transformers' Trainer wraps it, and the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world_size,))
    stack = getattr(model.base_model, "encoder", None) or model.base_model.transformer
    for layer in stack.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compare(rank: int, world_size: int) -> None:
    # A layer's output would be a view, had it been padded for FSDP's hooks.
    warnings.filterwarnings("error", "FSDP2-wrapped module")
    for family in FAMILIES:
        torch.manual_seed(0)
        stock, inputs = build(family), batch(family, LENGTHS)
        expected = backward(stock, stock, inputs)
        rows = own(rank, world_size, len(LENGTHS))
        part = {name: x[rows] for name, x in inputs.items()}
        for wrap in (in_ddp, in_fsdp):
            model = taken(stock)
            grads = backward(wrap(model, world_size), model, part)
            assert apart(grads, expected) < 1e-4, (family, wrap.__name__)


def test_processes_have_the_whole_batch_s_gradients():
    in_processes(2, compare)
