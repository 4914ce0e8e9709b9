"""One SBRRT round on Hugging Face's BertModel, as its users write it.

Padded batches that a data loader has made ahead, torch's dropout, SMART by a noisy and an
adversarial forward (arXiv 1911.03437, Algorithm 1 with the gradient's direction at a radius), a
momentum teacher, clipping, fused AdamW and a linear schedule, with a step after each task's batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.training.step.group import TaskBatch

BUCKET = 16  # lengths are padded to multiples of it where graphs are captured


@dataclass(frozen=True)
class Form:
    """How a user runs the model.

    Attributes:
        precision: ``fp32``, or ``bf16`` autocast. attention: ``eager`` or ``sdpa``.
        compile: ``no``, ``default`` (sizes may change), or ``graphs`` (CUDA graphs, each length
            padded to a bucket).
    """

    precision: str
    attention: str = "sdpa"
    compile: str = "no"


class HuggingFaceModel(nn.Module):
    """BertModel with mean pooling and a head per task, with the weights of one of our models."""

    def __init__(self, ours: MultiTaskModel, attention: str):
        super().__init__()
        config = ours.config
        names = {n: getattr(config, n) for n in vars(config) if n != "initializer_range"}
        settings = BertConfig(**names, attn_implementation=attention)
        self.bert = BertModel(settings, add_pooling_layer=False)
        weights = {n: w for n, w in ours.encoder.state_dict().items() if "pooler" not in n}
        self.bert.load_state_dict(weights)
        self.dropout, self.tasks = nn.Dropout(config.hidden_dropout_prob), ours.tasks
        linear = {n: h.classifier for n, h in ours.heads.items() if hasattr(h, "classifier")}
        heads = {name: copy.deepcopy(layer) for name, layer in linear.items()}
        self.heads = nn.ModuleDict(heads)

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


class HuggingFaceRound:
    """The training step of a user of transformers.

    Args:
        ours: the model whose weights and dropout it begins with, on its device.
        config: of the run that is compared. num_rounds: of that run.
    """

    def __init__(self, ours: MultiTaskModel, config: RunConfig, form: Form, num_rounds: int):
        self.config, self.smart, self.form = config, resolve(config.smart), form
        self._padded_batches: dict[int, list[Tensor]] = {}
        self.device = next(ours.parameters()).device
        self.model = HuggingFaceModel(ours, form.attention).to(self.device).train()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.student_outputs = self._compiled(self.model.outputs)
        self.teacher_outputs = self._compiled(self.teacher.outputs)
        rate = config.optimizer.learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, fused=True)
        steps = num_rounds * len(config.tasks)
        warm_up = round(config.optimizer.warmup * steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warm_up, steps)

    def _compiled(self, function):
        if self.form.compile == "no":
            return function
        if self.form.compile == "graphs":
            return torch.compile(function, mode="reduce-overhead", dynamic=False)
        return torch.compile(function, dynamic=True)

    def round(self, batches: list[TaskBatch]) -> dict[str, Tensor]:
        """Trains on the round's batches, in the host's memory; each task's loss and R_s."""
        terms = {}
        for batch in batches:
            if self.form.compile == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            loss, smart, total = self._losses(batch)
            total.backward()
            self._update()
            terms[f"{batch.name}/loss"] = loss.detach()
            terms[f"{batch.name}/smart"] = smart.detach()
        return terms

    def _on_device(self, batch: TaskBatch) -> list[Tensor]:
        """Ids and mask [sequences, length], where the input may be moved [..., 1], labels."""
        if id(batch) not in self._padded_batches:
            self._padded_batches[id(batch)] = [*self._padded(batch), batch.labels]
        return [x.to(self.device, non_blocking=True) for x in self._padded_batches[id(batch)]]

    def _padded(self, batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
        tokens = batch.tokens.padded()
        shape = tokens.num_sequences, tokens.max_length
        may_move = tokens.is_real & ~tokens.is_special
        inputs = [x.view(shape) for x in (tokens.input_ids, tokens.is_real.long(), may_move)]
        if self.form.compile == "graphs":
            inputs = [F.pad(x, (0, -shape[1] % BUCKET)) for x in inputs]
        return inputs[0], inputs[1], inputs[2][..., None]

    def _losses(self, batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
        task, name = self.config.tasks[batch.name], batch.name
        input_ids, mask, may_move, labels = self._on_device(batch)
        low = self.form.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            embeddings = self.model.embed(input_ids)
            outputs = self.student_outputs(name, embeddings, mask)
            loss = loss_of(task, outputs, labels)
            delta = self._perturbation(task, name, embeddings, outputs, mask, may_move)
            moved = self.student_outputs(name, embeddings + delta, mask)
            with torch.no_grad():
                target = self.teacher_outputs(name, self.teacher.embed(input_ids), mask)
            smart = divergence(task, moved, outputs)
            total = loss + self.smart.weight * smart
            total = total + self.config.bregman.weight * divergence(task, outputs, target)
        return loss, smart, total

    def _perturbation(self, task, name, embeddings, outputs, mask, may_move) -> Tensor:
        noise = 1e-3 * torch.randn_like(embeddings) * may_move
        point = (embeddings.detach() + noise).requires_grad_()
        noisy = self.student_outputs(name, point, mask)
        (grad,) = torch.autograd.grad(divergence(task, noisy, outputs.detach()), point)
        grad = grad * may_move
        return self.smart.radius * grad / grad.abs().amax(-1, keepdim=True).clamp(min=1e-30)

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()),
                list(self.model.parameters()),
                1.0 - self.config.bregman.beta,
            )
