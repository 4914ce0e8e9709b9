"""Hugging Face's BertModel with the heads, losses and divergences of a multitask run."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.multitask import MultiTaskModel

Parts = Sequence[tuple[str, int]]  # (task, sequences) in the order of a batch's rows


class SentenceEncoder(nn.Module):
    """BertModel, mean pooling and dropout, the same for all tasks: what a user compiles."""

    def __init__(self, bert: BertModel, p: float):
        super().__init__()
        self.bert, self.dropout = bert, nn.Dropout(p)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """[sequences, hidden] from word embeddings [sequences, length, hidden]."""
        hidden = self.bert(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return self.dropout((hidden * weight).sum(1) / weight.sum(1))


class HuggingFaceModel(nn.Module):
    """BertModel with mean pooling and a head per task, with the weights of one of our models."""

    def __init__(self, ours: MultiTaskModel, attention: str):
        super().__init__()
        config = ours.config
        names = {n: getattr(config, n) for n in vars(config) if n != "initializer_range"}
        settings = BertConfig(**names, attn_implementation=attention)
        bert = BertModel(settings, add_pooling_layer=False)
        weights = {n: w for n, w in ours.encoder.state_dict().items() if "pooler" not in n}
        bert.load_state_dict(weights)
        self.encoder, self.tasks = SentenceEncoder(bert, config.hidden_dropout_prob), ours.tasks
        linear = {n: h.classifier for n, h in ours.heads.items() if hasattr(h, "classifier")}
        heads = {name: copy.deepcopy(layer) for name, layer in linear.items()}
        self.heads = nn.ModuleDict(heads)

    def with_attention(self, attention: str) -> HuggingFaceModel:
        """Another model of the same parameters, whose attention is ``eager`` or ``sdpa``."""
        other = copy.deepcopy(self, {id(p): p for p in self.parameters()})
        other.encoder.bert.set_attn_implementation(attention)
        return other

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings: what ``inputs_embeds`` lets one perturb."""
        return self.encoder.bert.embeddings.word_embeddings(input_ids)

    def head_outputs(self, parts: Parts, pooled: Tensor) -> list[Tensor]:
        """Class logits, or similarities, of every task in a batch from [sequences, hidden]."""
        rows = pooled.split([count for _, count in parts])
        return [self._head(name, x) for (name, _), x in zip(parts, rows, strict=True)]

    def _head(self, name: str, pooled: Tensor) -> Tensor:
        task = self.tasks[name]
        if task.head == "cosine":
            return task.label_range[1] * F.cosine_similarity(pooled[0::2], pooled[1::2])
        if task.encoding == "siamese":
            u, v = pooled[0::2], pooled[1::2]
            pooled = torch.cat([u, v, (u - v).abs()], dim=-1)
        return self.heads[name](pooled)


def loss_of(task: TaskConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    outputs = outputs.float()
    if task.head == "classes":
        return F.cross_entropy(outputs, labels.long())
    if task.head == "binary":
        return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), labels)
    return F.mse_loss(outputs, labels)


def divergence(task: TaskConfig, z: Tensor, w: Tensor) -> Tensor:
    """Symmetric KL of classes, squared difference of values; the mean."""
    z, w = z.float(), w.float()
    if task.head == "cosine":
        return (z - w).square().mean()
    if task.head == "binary":
        z, w = (F.pad(x, (1, 0)) for x in (z, w))
    p, q = F.log_softmax(z, -1), F.log_softmax(w, -1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
