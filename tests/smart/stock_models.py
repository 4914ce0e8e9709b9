"""Small random models of transformers, a padded batch for them, and exact answers in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sbrrt_fast.smart.replay import RandomState, replayed

VOCAB, WIDTH, PADDING = 90, 32, 1
LENGTHS = [9, 4, 7, 2]


def bert(num_labels: int = 3, attention: str | None = None, **settings) -> nn.Module:
    """BERT with logits of order 1, in ``eval()``."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "initializer_range": 0.3,
        "attn_implementation": attention,
    }
    torch.manual_seed(0)
    config = BertConfig(num_labels=num_labels, **shape | settings)
    return BertForSequenceClassification(config).eval()


def padded_batch(lengths: list[int] = LENGTHS) -> dict[str, Tensor]:
    """Token ids and their attention mask; id 2 begins and id 3 ends each sequence."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[:, 0] = 2
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 3
    return {"input_ids": ids.where(mask, PADDING), "attention_mask": mask.long()}


def cosine(ours: Tensor | list[Tensor], exact: Tensor | list[Tensor]) -> float:
    ours, exact = (_flat(x) for x in (ours, exact))
    return torch.cosine_similarity(ours, exact, dim=0).item()


def _flat(x: Tensor | list[Tensor]) -> Tensor:
    tensors = [x] if isinstance(x, Tensor) else x
    return torch.cat([t.detach().double().flatten() for t in tensors])


class Exact:
    """A float64 copy of a model given as a function of its embeddings, under given masks.

    Args:
        model_fn: (model, embeddings) -> outputs. embed: model -> embeddings.
        state: before the clean pass, or None.
    """

    def __init__(self, model: nn.Module, model_fn, embed, state: RandomState | None):
        self.model = copy.deepcopy(model).double()
        self.model_fn, self.state = model_fn, state
        with replayed(state):
            self.x = embed(self.model)

    def __call__(self, x: Tensor) -> Tensor:
        with replayed(self.state):
            return self.model_fn(self.model, x)

    def loss(self, divergence, delta: Tensor) -> Tensor:
        """R_s of this perturbation, with its graph to the weights."""
        return divergence(self(self.x + delta.double()), self(self.x)).mean()

    def gradient(self, divergence, delta: Tensor, sigma: float = 1e-5) -> Tensor:
        """The gradient of mean l_s at x + sigma delta, by a forward and a backward there."""
        point = (self.x.detach() + sigma * delta.double()).requires_grad_()
        loss = divergence(self(point), self(self.x).detach()).mean()
        return torch.autograd.grad(loss, point)[0] / sigma

    def weight_gradient(self, divergence, delta: Tensor) -> list[Tensor]:
        return weight_gradient(self.loss(divergence, delta), self.model)


def weight_gradient(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """The loss's gradient of all parameters; 0 of those that it does not depend on."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(grads, parameters, strict=True)
    return [torch.zeros_like(p) if g is None else g for g, p in pairs]
