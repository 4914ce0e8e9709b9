"""One shared encoder with a head per task."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.heads import build_head, class_logits, predictions, task_loss
from sbrrt_fast.model.height import height_of, num_layers
from sbrrt_fast.model.label_units import LabelUnits
from sbrrt_fast.model.load_encoder import Encoder
from sbrrt_fast.ranges import check


class TaskHeads(nn.ModuleDict):
    """Heads by task name, whatever the name: a task may be called ``type`` or ``update``.

    Heads are reached as ``heads[name]`` alone, so no name can collide with an attribute.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._modules[name] = module

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the mode is set as ``training``, a task's name too


class MultiTaskModel(nn.Module):
    """An encoder with task heads.

    Args:
        encoder: the shared encoder.
        tasks: records by name.
        pair_features: ``concat_difference`` or ``concat``.
        seed: of the heads' initial weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: dict[str, TaskConfig],
        pair_features: str = "concat_difference",
        seed: int = 0,
    ):
        super().__init__()
        self.encoder, self.tasks, self.pair_features = encoder, dict(tasks), pair_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden_size = encoder.config.hidden_size
            self.heads = TaskHeads(
                {name: build_head(task, hidden_size, pair_features) for name, task in tasks.items()}
            )

    @property
    def config(self):
        return self.encoder.config

    def embed(self, batch: TokenBatch, stream: DropoutStream | None = None) -> Tensor:
        """The embedding layer's output, [num_tokens, hidden]."""
        return self.encoder.embed(batch, stream)

    def outputs(
        self,
        task: str,
        embeddings: Tensor,
        batch: TokenBatch,
        stream: DropoutStream | None = None,
    ) -> Tensor:
        """A task's outputs from the embedding layer's output, float32 or above.

        Without a stream ``own_stream`` drops out, in ``train()``.
        """
        stream = stream or self.own_stream(task, batch)
        hidden = self.encoder.encode(embeddings, batch, stream)
        with torch.autocast(hidden.device.type, enabled=False):
            pooled = self.encoder.pool(hidden.to(embeddings.dtype), batch)
            p = self.config.hidden_dropout_prob
            factors = stream and stream.pooled_factors(pooled.shape[-1], p, pooled.dtype)
            return self.head_outputs(task, pooled, factors)

    def own_stream(self, task: str, batch: TokenBatch) -> DropoutStream | None:
        """The encoder's ``own_stream``; it drops nothing of a task that is trained without."""
        return self.encoder.own_stream(batch, self.tasks[task].dropout)

    def head_outputs(self, task: str, pooled: Tensor, factors: Tensor | None) -> Tensor:
        """A task's outputs from pooled sequences [num_sequences, hidden] and dropout's factors."""
        return self.heads[task](pooled if factors is None else pooled * factors)

    def logits(
        self,
        task: str,
        embeddings: Tensor,
        batch: TokenBatch,
        stream: DropoutStream | None = None,
    ) -> Tensor:
        """Like ``outputs``, with a binary head's logit as two-class logits, for divergences."""
        return class_logits(self.tasks[task], self.outputs(task, embeddings, batch, stream))

    def forward(self, task: str, batch: TokenBatch, stream: DropoutStream | None = None) -> Tensor:
        """A task's outputs from tokens."""
        stream = stream or self.own_stream(task, batch)
        return self.outputs(task, self.embed(batch, stream), batch, stream)

    def loss(self, task: str, outputs: Tensor, labels: Tensor) -> Tensor:
        """A task's mean loss, a scalar in training units.

        Args:
            outputs: the head's. labels: float [num_examples], as they are in the task's file.
        """
        units = self.label_units(task)
        labels = labels if units is None else units.standardize(labels)
        return task_loss(self.tasks[task], outputs, labels, self.heads[task].class_weights)

    def predictions(self, task: str, outputs: Tensor) -> Tensor:
        """What is scored and written, float32 [num_examples]: class numbers, values as labels are.

        Args:
            outputs: the head's.
        """
        units = self.label_units(task)
        return predictions(self.tasks[task], outputs if units is None else units.restore(outputs))

    def learn_weights(self) -> None:
        """Gives every task that trains a log variance, from 0; see ``heads.uncertain_loss``."""
        like = next(self.parameters())
        for name, head in self.heads.items():
            if self.tasks[name].train:
                head.register_parameter("log_variance", nn.Parameter(like.new_zeros(())))

    def log_variances(self) -> dict[str, nn.Parameter]:
        """By task; none where weights are fixed."""
        heads = self.heads.items()
        return {name: head.log_variance for name, head in heads if hasattr(head, "log_variance")}

    def head_tensors(self) -> dict[str, Tensor]:
        """What the heads compute outputs from, by name: without what weighs losses alone."""
        state = self.heads.state_dict()
        return {n: x for n, x in state.items() if not n.endswith(".log_variance")}

    def label_units(self, task: str) -> LabelUnits | None:
        """The units that a task's values are trained in; None for classes."""
        return self.heads[task].units

    def trained_tensors(self) -> dict[str, Tensor]:
        """What training sets, by name: trainable parameters, and the label units."""
        persistent = self.state_dict(keep_vars=True)
        return {
            name: x
            for name, x in persistent.items()
            if x.requires_grad or not isinstance(x, nn.Parameter)
        }

    def freeze_heads(self, names: Iterable[str]) -> None:
        """Leaves the heads of these tasks as they are."""
        for name in names:
            self.heads[name].requires_grad_(False)

    def freeze_encoder(self) -> None:
        """Trains the heads alone (``mode: pretrain``)."""
        self.encoder.requires_grad_(False)

    def freeze_layers(self, count: int) -> None:
        """Leaves the embeddings and the ``count`` lowest layers as they are.

        Raises:
            ConfigError: the encoder has fewer, or none of its own.
        """
        key = "optimizer.frozen_layers"
        most = num_layers((name for name, _ in self.named_parameters()), key)
        check([(key, count, count <= most, f"at most {most}, the encoder's number of layers")])
        for name, parameter in self.named_parameters():
            height = height_of(name)
            if height is not None and height <= count:
                parameter.requires_grad_(False)
