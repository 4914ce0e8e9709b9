"""SmartRegularizer in DistributedDataParallel and FSDP: the gradients of a whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbrrt_fast import SmartConfig, SmartRegularizer
from tests.smart.processes import in_processes, own
from tests.smart.stock_models import bert, cosine, padded_batch

pytest.importorskip("transformers")

LABELS = torch.tensor([0, 2, 1, 1])
NOISE = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(2))


def on_ids(model, batch, noise):
    """By a hook on the embedding layer."""
    regularizer = SmartRegularizer.for_transformers(model, SmartConfig(), special_ids=[])
    return regularizer(**batch, noise=noise)


def on_embeddings(model, batch, noise):
    """As a function of word embeddings."""
    inner = getattr(model, "module", model)
    words = inner.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    regularizer = SmartRegularizer(lambda x: model(inputs_embeds=x, attention_mask=mask).logits)
    return regularizer(words, mask=mask.bool(), noise=noise)


WAYS = (on_ids, on_embeddings)


def gradients(wrapped, inner, way, rows: slice) -> list[torch.Tensor]:
    inner.zero_grad()
    batch = {name: value[rows] for name, value in padded_batch().items()}
    smart = way(wrapped, batch, NOISE[rows])
    loss = nn.functional.cross_entropy(smart.logits, LABELS[rows])
    (loss + 3.0 * smart.loss).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in inner.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for g in grads]


def sharded(model: nn.Module, world_size: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world_size,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compare(rank: int, world_size: int) -> None:
    ours = own(rank, world_size, len(LABELS))
    for way in WAYS:
        whole = bert()
        expected = gradients(whole, whole, way, slice(None))
        model = bert()
        ddp = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second round finds the reducer as the first left it
            got = gradients(ddp, model, way, ours)
            assert cosine(got, expected) > 0.99999, way.__name__
    whole, model = bert(), sharded(bert(), world_size)
    expected = gradients(whole, whole, on_ids, slice(None))
    assert cosine(gradients(model, model, on_ids, ours), expected) > 0.99999


@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_have_the_whole_batch_s_gradients(world_size):
    in_processes(world_size, compare)
