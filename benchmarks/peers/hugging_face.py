"""One SBRRT round on Hugging Face's BertModel, as its users write it.

Padded batches, torch's dropout, SMART by a noisy and an adversarial forward (arXiv 1911.03437,
Algorithm 1 with the gradient's direction at a radius), a momentum teacher, clipping and fused
AdamW after each task's batch.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.training.step import TaskBatch


class HuggingFaceModel(nn.Module):
    """BertModel with mean pooling and a head per task."""

    def __init__(self, folder: str, tasks: dict[str, TaskConfig], attention: str, dropout: float):
        super().__init__()
        self.bert = BertModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            attn_implementation=attention,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.dropout, self.tasks = nn.Dropout(dropout), tasks
        hidden = self.bert.config.hidden_size
        sizes = {name: hidden * (3 if t.encoding == "siamese" else 1) for name, t in tasks.items()}
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(sizes[name], task.num_classes if task.head == "classes" else 1)
                for name, task in tasks.items()
                if task.head != "cosine"
            }
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings: what ``inputs_embeds`` lets one perturb."""
        return self.bert.embeddings.word_embeddings(input_ids)

    def outputs(self, name: str, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Class logits, or similarities, from embeddings [sequences, length, hidden]."""
        hidden = self.bert(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        pooled = self.dropout((hidden * weight).sum(1) / weight.sum(1))
        task = self.tasks[name]
        if task.head == "cosine":
            return task.label_range[1] * F.cosine_similarity(pooled[0::2], pooled[1::2])
        if task.encoding == "siamese":
            u, v = pooled[0::2], pooled[1::2]
            pooled = torch.cat([u, v, (u - v).abs()], dim=-1)
        return self.heads[name](pooled)


def _loss(task: TaskConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    outputs = outputs.float()
    if task.head == "classes":
        return F.cross_entropy(outputs, labels.long())
    if task.head == "binary":
        return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), labels)
    return F.mse_loss(outputs, labels)


def _divergence(task: TaskConfig, z: Tensor, w: Tensor) -> Tensor:
    """Symmetric KL of classes, squared difference of values; the mean."""
    z, w = z.float(), w.float()
    if task.head == "cosine":
        return (z - w).square().mean()
    if task.head == "binary":
        z, w = (F.pad(x, (1, 0)) for x in (z, w))
    p, q = F.log_softmax(z, -1), F.log_softmax(w, -1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()


class HuggingFaceRound:
    """The training step of a user of transformers.

    Args:
        folder: of the checkpoint. config: of the run that is compared.
        precision: ``fp32``, or ``bf16`` autocast. attention: ``eager`` or ``sdpa``.
        compiled: passes the model's forward through torch.compile with dynamic shapes.
    """

    def __init__(
        self,
        folder: str,
        config: RunConfig,
        precision: str,
        attention: str = "sdpa",
        compiled: bool = False,
    ):
        torch.manual_seed(config.seed)
        self.config, self.smart = config, resolve(config.smart)
        self.precision, dropout = precision, 0.1
        self.model = HuggingFaceModel(folder, config.tasks, attention, dropout).train()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.student_outputs, self.teacher_outputs = self.model.outputs, self.teacher.outputs
        if compiled:
            self.student_outputs = torch.compile(self.model.outputs, dynamic=True)
            self.teacher_outputs = torch.compile(self.teacher.outputs, dynamic=True)
        rate = config.optimizer.learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, fused=True)

    def round(self, batches: list[TaskBatch]) -> dict[str, float]:
        """Trains on the round's batches; each task's loss."""
        losses = {}
        for batch in batches:
            loss, total = self._losses(batch)
            total.backward()
            self._update()
            losses[batch.name] = loss.detach()
        return {name: loss.item() for name, loss in losses.items()}

    def _losses(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        task, tokens = self.config.tasks[batch.name], batch.tokens.padded()
        shape = tokens.num_sequences, tokens.max_length
        input_ids, mask = tokens.input_ids.view(shape), tokens.is_real.view(shape).long()
        may_move = (tokens.is_real & ~tokens.is_special).view(*shape, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            embeddings = self.model.embed(input_ids)
            outputs = self.student_outputs(batch.name, embeddings, mask)
            loss = _loss(task, outputs, batch.labels)
            perturbed = embeddings + self._perturbation(
                task, batch.name, embeddings, outputs, mask, may_move
            )
            moved = self.student_outputs(batch.name, perturbed, mask)
            with torch.no_grad():
                target = self.teacher_outputs(batch.name, self.teacher.embed(input_ids), mask)
            total = loss + self.smart.weight * _divergence(task, moved, outputs)
            total = total + self.config.bregman.weight * _divergence(task, outputs, target)
        return loss, total

    def _perturbation(self, task, name, embeddings, outputs, mask, may_move) -> Tensor:
        noise = 1e-3 * torch.randn_like(embeddings) * may_move
        point = (embeddings.detach() + noise).requires_grad_()
        noisy = self.student_outputs(name, point, mask)
        divergence = _divergence(task, noisy, outputs.detach())
        (grad,) = torch.autograd.grad(divergence, point)
        grad = grad * may_move
        return self.smart.radius * grad / grad.abs().amax(-1, keepdim=True).clamp(min=1e-30)

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()),
                list(self.model.parameters()),
                1.0 - self.config.bregman.beta,
            )
