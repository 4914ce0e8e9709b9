"""A model as the written-out passes use it: weights, workspaces, tables and gradients."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.packed.encoder import PackedEncoder
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.model.packed.weights import ModelGradients
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.ops.written_out import written_out_backend
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.step.gradient_sums import GradientSums
from sbrrt_fast.training.step.group import Group, TaskBatch, by_task
from sbrrt_fast.training.step.group_tables import GroupTables
from sbrrt_fast.training.step.resting import Resting
from sbrrt_fast.training.step.streams import Streams
from sbrrt_fast.training.step.task_gradients import TaskGradients

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class WrittenOutModel:
    """Student and teacher of a run.

    Args:
        model: the student. teacher: or None. config: the run's.
        ranks: over which gradients are summed.

    Attributes:
        student, momentum: their encoders. weights, teacher_weights: their heads'.
        grads: of the student, and grad_words of the word table: the last backward's.
        sums: the step's gradients.
        trains_encoder: False where it is frozen. resting: what of it does not train now.
        one_output: the tasks whose Jacobian has rows.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        teacher: Teacher | None,
        config: RunConfig,
        ranks: Ranks = ONE_RANK,
    ):
        self.model, self.teacher, self.run_config = model, teacher, config
        self.device = next(model.parameters()).device
        self.smart, self.backend = resolve(config.smart), config.backend
        backend, reason = written_out_backend(config.backend, self.device)
        assert backend is not None, reason
        dtype = DTYPES[config.precision]
        self.weights = HeadWeights(model)
        num_weights = len(self.weights.flat)
        self.student = PackedEncoder(model.encoder, backend.ops, dtype, True, num_weights)
        self.momentum = self.teacher_weights = None
        if teacher is not None:
            self.momentum = PackedEncoder(teacher.module.encoder, backend.ops, dtype, False)
            self.teacher_weights = HeadWeights(teacher.module)
        self.streams = self.student.streams = Streams(self.device)
        self.grads = self.student.gradients
        self.grad_words: RowGradient | None = None
        self.trains_encoder = any(p.requires_grad for p in model.encoder.parameters())
        self.has_surgery = config.optimizer.surgery == "pcgrad"
        self.resting = Resting()
        self.sums = self._new_sums(ranks)
        self.student.on_layer = self.sums.complete
        perturbs = self.smart.weight > 0 and self.smart.gradient == "tangent"
        has_rows = perturbs and self.trains_encoder
        tasks = model.tasks.items() if has_rows else ()
        self.one_output = frozenset(name for name, task in tasks if task.has_one_output)
        self._tables: dict[tuple, GroupTables] = {}

    @property
    def encoder(self) -> MiniBert:
        return self.model.encoder

    @property
    def config(self):
        """The encoder's."""
        return self.model.config

    def apart(self, batches: list[TaskBatch]) -> list[list[TaskBatch]]:
        """The batches that go through the encoder together.

        With surgery they are those of one task, else those with dropout and those without.
        """
        if self.has_surgery:
            return by_task(batches)
        parts = [[b for b in batches if self.drops([b.name]) == drops] for drops in (True, False)]
        return [part for part in parts if part]

    def drops(self, names: Collection[str]) -> bool:
        """Whether tasks are trained with dropout, by a model that has it; they are alike."""
        rates = self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob
        return any(rates) and all(self.model.tasks[name].dropout for name in names)

    def group(self, batches: list[TaskBatch]) -> Group:
        """The batches side by side, in the order that the passes want."""
        return Group.of(batches, self.one_output)

    def tables(self, group: Group) -> GroupTables:
        """The group's tables, made when its like comes first."""
        places = group.counts, group.firsts, group.num_row_sequences
        key = group.names, group.repeats, group.shares, *places
        if key not in self._tables:
            self._tables[key] = GroupTables(
                self.model, self.weights, self.run_config, group, self.device
            )
        return self._tables[key]

    def gradients_of(self, groups: list[Group]) -> dict[int, Tensor | RowGradient]:
        """The step's gradients by id of the parameter: those that train."""
        grads = self.sums.result
        names = dict.fromkeys(name for group in groups for name in group.names)
        heads = (p for name in names for p in self._head(name))
        found = {id(p): self.weights.part(grads.heads, p) for p in heads}
        if not self.trains_encoder:
            return found
        found |= grads.by_parameter
        if self.sums.words is not None:
            found[id(self.encoder.embeddings.word_embeddings.weight)] = self.sums.words
        return {key: grad for key, grad in found.items() if key not in self.resting.parameters}

    def copies(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The bfloat16 copies of weights and of the teacher's, by id of the parameter."""
        averages = {}
        if self.momentum:
            ema_params = self.teacher.averages_by_parameter()
            copies = self.momentum.weights.copies
            averages = {i: copies[id(e)] for i, e in ema_params.items() if id(e) in copies}
        return self.student.weights.copies, averages

    def refresh(self) -> None:
        """Follows weights that were changed or replaced outside the step."""
        for weights in self._all_weights():
            weights.refresh()

    def mark_fresh(self) -> None:
        """The update has just written the copies."""
        for encoder in filter(None, (self.student, self.momentum)):
            encoder.weights.mark_fresh()

    def memory(self) -> dict[str, int]:
        """Bytes held beyond weights and optimiser state."""
        encoders = [e for e in (self.student, self.momentum) if e]
        copies = [copy.nbytes for e in encoders for copy in e.weights.copies.values()]
        return {
            "activations": sum(e.workspace.num_bytes for e in encoders),
            "copies": sum(copies),
            "gradients": self.sums.num_bytes,
        }

    def capacity(self) -> tuple[int, ...]:
        """Sizes of the workspaces: where one has grown, captured work has the old addresses."""
        spaces = [e.workspace for e in (self.student, self.momentum) if e]
        return tuple(size for space in spaces for size in (space.capacity, space.num_sums))

    def _new_sums(self, ranks: Ranks) -> GradientSums | TaskGradients:
        if not self.has_surgery:
            return GradientSums(self.grads, self._new_total, ranks, self.trains_encoder)
        num_tasks = len(self.model.tasks)
        return TaskGradients(self.grads, self._new_total, num_tasks, self.backend, ranks)

    def _new_total(self, memory: tuple[Tensor, Tensor] | None = None) -> ModelGradients:
        weights = self.student.weights, len(self.weights.flat)
        return ModelGradients(self.encoder, *weights, torch.float32, memory)

    def _head(self, name: str) -> list[Tensor]:
        return [p for p in self.model.heads[name].parameters() if p.requires_grad]

    def _all_weights(self):
        for encoder in filter(None, (self.student, self.momentum)):
            yield encoder.weights
        yield from filter(None, (self.weights, self.teacher_weights))
