"""Small random models of every family, batches, and what is compared of their passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
import transformers
from torch import Tensor, nn

from sbrrt_fast import apply_sbrrt_kernels

WIDTH, LAYERS, LENGTH, WORDS = 64, 2, 11, 90
PADDING = {"bert": 0, "roberta": 1, "distilbert": 0, "electra": 0}  # each family's own number
FAMILIES = tuple(PADDING)
LENGTHS = (LENGTH, 5, 1, 8)


def build(family: str, head: str = "SequenceClassification", **changes) -> nn.Module:
    """A model with random weights, biases too, in float32, without dropout unless asked."""
    config_kind, model_kind = KINDS[family](head)
    config = config_kind(**settings(family) | changes)
    model = model_kind(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model.eval()


def settings(family: str) -> dict:
    """Of a configuration; DistilBERT has names of its own."""
    common = {"vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": PADDING[family]}
    common |= {"num_labels": 3}
    if family == "distilbert":
        shape = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 96}
        return common | shape | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0}
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    shape |= {"intermediate_size": 96, "hidden_dropout_prob": 0.0}
    shape |= {"attention_probs_dropout_prob": 0.0}
    return common | shape | ({"embedding_size": 32} if family == "electra" else {})


def _kinds(name: str) -> Callable[[str], tuple[type, type]]:
    """head -> the classes of transformers; no head is the bare model."""

    def of(head: str) -> tuple[type, type]:
        model = f"{name}For{head}" if head else f"{name}Model"
        return getattr(transformers, f"{name}Config"), getattr(transformers, model)

    return of


KINDS = {
    "bert": _kinds("Bert"),
    "roberta": _kinds("Roberta"),
    "distilbert": _kinds("DistilBert"),
    "electra": _kinds("Electra"),
}


def with_dropout(family: str, p: float = 0.1, attention: float | None = None) -> dict:
    """Changes for ``build``."""
    attention = p if attention is None else attention
    if family == "distilbert":
        return {"dropout": p, "attention_dropout": attention}
    return {"hidden_dropout_prob": p, "attention_probs_dropout_prob": attention}


def taken(model: nn.Module, **options) -> nn.Module:
    """A copy of the model with the kernels, of all its encoder's modules."""
    model = copy.deepcopy(model)
    report = apply_sbrrt_kernels(model, **options)
    assert set(report.left_alone.values()) <= {"no kernel is for it"}
    return model


def batch(family: str, lengths=LENGTHS, seed: int = 1) -> dict[str, Tensor]:
    """Padded sequences of these lengths, with labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    ids = torch.randint(4, WORDS, shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask.bool(), ids, PADDING[family])
    labels = torch.arange(len(lengths)) % 3
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def hidden_states(model: nn.Module, inputs: dict) -> Tensor:
    """The last hidden states of the real tokens, [num_tokens, hidden]."""
    inputs = {name: x for name, x in inputs.items() if name != "labels"}
    hidden = model.base_model(**inputs).last_hidden_state
    mask = inputs.get("attention_mask")
    return hidden.flatten(0, 1) if mask is None else hidden[mask.bool()]


def loss_of(model: nn.Module, inputs: dict) -> Tensor:
    """A scalar of the logits and of every real token's hidden state."""
    hidden = hidden_states(model, inputs)
    weights = torch.linspace(-1.0, 1.0, hidden.numel(), dtype=torch.float64).view(hidden.shape)
    return model(**inputs).loss.double() + (hidden.double() * weights).mean()


def results(
    model: nn.Module, inputs: dict, dtype: torch.dtype, autocast: bool = False
) -> dict[str, Tensor]:
    """Hidden states, logits, loss and all gradients of a copy in ``dtype``, in float64."""
    model = copy.deepcopy(model).to(dtype)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        hidden, logits = hidden_states(model, inputs), model(**inputs).logits
        loss = loss_of(model, inputs)
    loss.backward()
    tensors = {"hidden": hidden, "logits": logits, "loss": loss}
    tensors |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.detach().double() for name, x in tensors.items()}


def is_of_key(name: str) -> bool:
    """Whether a parameter is a key's bias."""
    return name.endswith(("key.bias", "k_lin.bias"))


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The norm of each tensor's error, over that of the tensor.

    A key's bias moves all scores of a query alike: its gradient is 0 but for rounding, and the
    error is told over the norm of the weights'. The query and key of a single token have no
    gradient either: no norm counts as less than a thousandth of the largest.
    """
    assert found.keys() == exact.keys()
    least = 1e-3 * max(x.norm() for name, x in exact.items() if name not in ("hidden", "logits"))

    def scale(name: str) -> Tensor:
        weight = name.removesuffix("bias") + "weight" if is_of_key(name) else name
        return exact[weight].norm().clamp(min=least)

    return {name: ((found[name] - x).norm() / scale(name)).item() for name, x in exact.items()}
