"""One round of pre-training: a masked batch in, weights moved, loss terms out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.op_calls import OpCall, encoder_calls
from sbrrt_fast.model.plain import why_not_plain
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.pretraining.batches import MaskedBatch
from sbrrt_fast.pretraining.config import PretrainConfig, as_training
from sbrrt_fast.pretraining.losses import Terms, head_gradients
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.pretraining.passes import AutogradPasses, EncoderPasses, WrittenOutPasses
from sbrrt_fast.training.step.op_choice import check_calls, choice_lines, written_out_why_not
from sbrrt_fast.training.step.optimizer import build_optimizer, set_learning_rate
from sbrrt_fast.training.step.update import FusedUpdate, build_update
from sbrrt_fast.training.step.written_out_model import DTYPES
from sbrrt_fast.training.step.written_out_pass import layout_why_not

Log = Callable[[str], object]


class PretrainStep:
    """The training step; its gradients are those of the mean loss over the round.

    Attributes:
        head_rounds: rounds at the start in which the heads alone are trained.

    Args:
        model: on its device. passes: its encoder's. config: the run's.
        num_rounds: of the whole run, for the learning rate.
    """

    def __init__(
        self,
        model: PretrainingModel,
        passes: EncoderPasses,
        config: PretrainConfig,
        num_rounds: int,
    ):
        self.model, self.passes, self.config, self.num_rounds = model, passes, config, num_rounds
        self.device, self.head_rounds = model.encoder.device, config.head_rounds
        if self.head_rounds is None:
            self.head_rounds = num_rounds // 10 if model.is_fresh else 0
        self.optimizer_config = as_training(config).optimizer
        named = model.named_parameters()
        self.optimizer = build_optimizer(named, self.optimizer_config, head_prefix="cls.")
        clip_norm = config.optimizer.clip_norm
        self.update = build_update(self.optimizer, None, clip_norm, num_rounds, config.backend)

    def round(self, batch: MaskedBatch, index: int) -> Terms:
        """Trains on a batch.

        Args:
            batch: in the host's memory. index: number of rounds done before.

        Returns:
            Detached scalars: those of ``head_gradients``, ``gradient_norm``, and ``tokens``, how
            many the batch has.
        """
        terms, gradients = self.differentiate(batch, index)
        set_learning_rate(self.optimizer, index + 1, self.num_rounds, self.optimizer_config)
        return terms | {"gradient_norm": self._update(gradients, index + 1)}

    def differentiate(self, batch: MaskedBatch, index: int) -> tuple[Terms, dict[int, Tensor]]:
        """A batch's terms, and the gradients of what round ``index`` trains, by id."""
        heads_alone = index < self.head_rounds
        num_tokens = float(batch.tokens.num_tokens)
        batch = replace(batch, tokens=batch.tokens.with_words()).to(self.device)
        rng = to_device(torch.tensor([self.config.seed, index]), self.device)
        hidden = self.passes.forward(batch.tokens, rng)
        heads = head_gradients(self.model, hidden, batch, self.config.precision, heads_alone)
        terms = {**heads.terms, "tokens": hidden.new_full((), num_tokens)}
        if heads_alone:
            return terms, heads.parameters
        gradients, words = self.passes.backward(heads.hidden), id(self.model.words)
        total = _added(heads.parameters[words], gradients[words])
        return terms, {**gradients, **heads.parameters, words: total}

    @torch.no_grad()
    def _update(self, gradients: dict[int, Tensor], step: int) -> Tensor:
        if isinstance(self.update, FusedUpdate):
            norm = self.update.apply(step, gradients, self.passes.copies)
            self.passes.mark_fresh()
            return norm
        for p in self.model.parameters():
            p.grad = gradients.get(id(p))
        return self.update(step)


def build_step(
    model: PretrainingModel, config: PretrainConfig, num_rounds: int, log: Log = print
) -> PretrainStep:
    """The step with written-out passes where they can run, else under autograd, which is said.

    Raises:
        BackendError: the named backend cannot run an op of this model, with each one's reason.
    """
    device, run = model.encoder.device, as_training(config)
    model.encoder.set_backend(config.backend)
    longest = min(config.max_length, model.config.max_position_embeddings)
    parameters = list(model.parameters())
    calls = encoder_calls(model.encoder, DTYPES[config.precision], longest)
    calls.append(OpCall.named("gradient_norm", parameters))
    calls.append(OpCall.named("adamw_ema_", parameters, parameters))
    check_calls(calls, config.backend)
    reason = (
        layout_why_not(run, device)
        or why_not_plain(model)
        or written_out_why_not(calls, config.backend, device)
    )
    if reason is not None and config.backend != "reference":
        log(f"the step runs under autograd, which is slower: {reason}")
        for line in choice_lines(calls, config.backend, device, known=reason):
            log(line)
    kind = WrittenOutPasses if reason is None else AutogradPasses
    passes = kind(model.encoder, config.backend, config.precision)
    return PretrainStep(model, passes, config, num_rounds)


def _added(dense: Tensor, gradient: Tensor | RowGradient) -> Tensor:
    """The word table's gradient: the decoder's, and the embedding's of the words that occur."""
    if isinstance(gradient, Tensor):
        return dense.add_(gradient)
    both = dense.index_select(0, gradient.rows).add_(gradient.values)
    return dense.index_copy_(0, gradient.rows, both)
