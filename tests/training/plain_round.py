"""A round's losses in plain torch: a loop over layers and formulas from the papers.

It shares nothing with the step but the tokens and the noise: no op, divergence or ascent of the
package. Without dropout, on padded batches, differentiated by autograd.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hvp, jvp

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.settings import SmartConfig


class PlainModel:
    """BERT and one head of a model's weights, on the sequences of a padded batch."""

    def __init__(self, model, name: str, batch: TokenBatch):
        self.weights, self.config = dict(model.named_parameters()), model.config
        self.task, self.pooling = model.tasks[name], model.encoder.pooling
        self.head, self.pair_features = f"heads.{name}.classifier", model.pair_features
        shape = batch.num_sequences, batch.max_length
        self.ids, self.types = (x.view(shape) for x in (batch.input_ids, batch.token_types))
        self.real = batch.is_real.view(shape)

    def w(self, name: str) -> Tensor:
        return self.weights[f"encoder.{name}"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w(f"{name}.weight").t() + self.w(f"{name}.bias")

    def norm(self, x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.config.layer_norm_eps).sqrt()
        return self.w(f"{name}.weight") * x + self.w(f"{name}.bias")

    def embed(self) -> Tensor:
        tables = (
            self.w("embeddings.word_embeddings.weight")[self.ids],
            self.w("embeddings.position_embeddings.weight")[: self.ids.shape[1]],
            self.w("embeddings.token_type_embeddings.weight")[self.types],
        )
        return self.norm(sum(tables), "embeddings.LayerNorm")

    def logits(self, x: Tensor) -> Tensor:
        """[num_examples, num_classes], or values [num_examples], from embeddings."""
        for i in range(self.config.num_hidden_layers):
            x = self.layer(x, f"encoder.layer.{i}")
        real = self.real.to(x.dtype)[..., None]
        pooled = x[:, 0] if self.pooling.startswith("cls") else (x * real).sum(1) / real.sum(1)
        if self.pooling == "cls":
            pooled = self.linear(pooled, "pooler.dense").tanh()
        return self.head_logits(pooled)

    def layer(self, x: Tensor, name: str) -> Tensor:
        heads = self.config.num_attention_heads
        q, k, v = (
            self.linear(x, f"{name}.attention.self.{part}")
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self.real[:, None, None], -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        attended = self.linear(attended, f"{name}.attention.output.dense")
        x = self.norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = self.linear(x, f"{name}.intermediate.dense")
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        return self.norm(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def head_logits(self, pooled: Tensor) -> Tensor:
        if self.task.encoding == "siamese":
            u, v = pooled[0::2], pooled[1::2]
            if self.task.head == "cosine":
                return 5.0 * (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))
            parts = [u, v, (u - v).abs()]
            pooled = torch.cat(parts[: 3 if self.pair_features == "concat_difference" else 2], -1)
        weight, bias = (self.weights[f"{self.head}.{part}"] for part in ("weight", "bias"))
        logits = pooled @ weight.t() + bias
        if self.task.head == "binary":  # the classes 0 and 1
            return torch.cat([torch.zeros_like(logits), logits], dim=-1)
        return logits if self.task.head == "classes" else logits.squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over examples."""
        if logits.dim() == 1:  # STS's labels go from 0 to 5 already
            return (logits - labels).square().mean()
        picked = F.one_hot(labels.long(), logits.shape[1]).to(logits.dtype)
        return -(picked * logits.log_softmax(-1)).sum(-1).mean()


def divergence(z: Tensor, w: Tensor) -> Tensor:
    """Mean symmetric KL of two classifiers, or squared difference of two regressions."""
    if z.dim() == 1:
        return (z - w).square().mean()
    p, q = z.log_softmax(-1), w.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()


def perturbation(
    plain: PlainModel, x: Tensor, noise: Tensor, may_move: Tensor, config: SmartConfig
) -> Tensor:
    """T_x ascent steps; noise [num_sequences, max_length, hidden], may_move without hidden."""
    x, keep = x.detach(), may_move[..., None]
    w = plain.logits(x).detach()
    delta = config.sigma * noise * keep
    for _ in range(config.num_steps):
        _, change = jvp(plain.logits, x, delta)
        _, cotangent = hvp(lambda d: divergence(w + d, w), torch.zeros_like(w), change)
        point = x.clone().requires_grad_()
        gradient = torch.autograd.grad(plain.logits(point), point, cotangent)[0] * keep
        delta = moved(delta, gradient, config)
    return delta


def moved(delta: Tensor, gradient: Tensor, config: SmartConfig) -> Tensor:
    """One step and its projection."""

    def size(t: Tensor) -> Tensor:
        dims = (-1,) if config.level == "token" else (-2, -1)
        order = math.inf if config.norm == "inf" else 2
        return torch.linalg.vector_norm(t, order, dims, keepdim=True).clamp(min=1e-300)

    if math.isinf(config.step_size):
        delta = gradient
    else:
        step = gradient / size(gradient) if config.normalize_gradient else gradient
        delta = delta + config.step_size * step
    if config.projection == "normalize":
        return config.radius * delta / size(delta)
    if config.norm == "inf":
        return delta.clamp(-config.radius, config.radius)
    return delta * (config.radius / size(delta)).clamp(max=1)


def plain_losses(
    plain: PlainModel,
    teacher: PlainModel | None,
    labels: Tensor,
    noise: Tensor,
    may_move: Tensor,
    smart: SmartConfig,
    mu: float,
) -> dict[str, Tensor]:
    """``loss``, ``smart``, ``bregman`` and ``total``, with their graph."""
    x = plain.embed()
    w = plain.logits(x)
    terms = {"loss": plain.loss(w, labels)}
    total = terms["loss"]
    if smart.weight > 0:
        delta = perturbation(plain, x, noise, may_move, smart)
        terms["smart"] = divergence(plain.logits(x + delta), w)
        total = total + smart.weight * terms["smart"]
    if teacher is not None:
        with torch.no_grad():
            target = teacher.logits(teacher.embed())
        terms["bregman"] = divergence(w, target)
        total = total + mu * terms["bregman"]
    return terms | {"total": plain.task.weight * total}
