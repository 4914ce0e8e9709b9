"""SMART around a loss of sentence-transformers.

loss = SmartLoss(CoSENTLoss(model), SmartConfig(weight=1.0))
SentenceTransformerTrainer(model, arguments, rows, loss=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.column_embeddings import ColumnEmbeddings
from sbrrt_fast.smart.divergence import SQUARED, SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.model_function import ModelFunction
from sbrrt_fast.smart.presets import weighted
from sbrrt_fast.smart.regularizer import SmartOutput, SmartRegularizer
from sbrrt_fast.smart.transformers import TransformersRegularizer, check_hookable, unwrapped

Columns = Sequence[dict[str, Any]]
Outputs = Callable[[list[Tensor]], Tensor]


class SmartLoss(nn.Module):
    """Adds ``smart.weight`` R_s to a loss on pairs of sentences; evaluation is as it was.

    An example is a pair, and both sentences' embeddings are perturbed at once. R_s is the mean
    squared change of each pair's similarity, which is ``CoSENTLoss``'s ``similarity_fct`` and
    otherwise the cosine; of ``SoftmaxLoss`` it is the mean symmetric KL of its classifier's logits.

    In training it returns what the loss does as a dictionary with ``smart``, the weighted R_s, as
    the Trainer of sentence-transformers adds up and logs.

    Args:
        loss: called as ``loss(sentence_features, labels)``, with a ``SentenceTransformer`` as its
            ``model`` that it calls once per column.
        smart: the mechanism's settings; its weight must be above 0.
        outputs: sentence embeddings, one [num_examples, dimension] per column, -> what R_s is of,
            [num_examples] or [num_examples, num_classes]; in place of the above, and for losses on
            one column.
        divergence: of these outputs; by default ``SQUARED``, and ``SYMMETRIC_KL`` of
            ``SoftmaxLoss``.

    Attributes:
        smart_output: the ``SmartOutput`` of the last training batch, or None.

    Raises:
        ValueError: the weight is 0, or the loss has no model.
    """

    def __init__(
        self,
        loss: nn.Module,
        smart: SmartConfig | None = None,
        outputs: Outputs | None = None,
        divergence: Divergence | None = None,
    ):
        super().__init__()
        self.config = weighted(smart, "SmartLoss")
        if not isinstance(getattr(loss, "model", None), nn.Module):
            raise ValueError(
                f"SmartLoss: {type(loss).__name__} has no model; give a loss of "
                "sentence-transformers made with its SentenceTransformer"
            )
        self.loss, self.outputs = loss, outputs
        self.divergence = divergence or (SYMMETRIC_KL if _has_classifier(loss) else SQUARED)
        self.smart_output: SmartOutput | None = None
        self._regularizer: TransformersRegularizer | None = None

    @property
    def model(self) -> nn.Module:
        """The loss's, as the Trainer has wrapped it."""
        return self.loss.model

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Any:
        """The loss, and R_s around its pass where the model is in ``train()``.

        Raises:
            ValueError: the loss is not on pairs and ``outputs`` is None, or does not call its model
                once per column.
        """
        columns = list(sentence_features)
        if not (self.model.training and torch.is_grad_enabled()):
            return self.loss(columns, labels)
        loss, self.smart_output = self._around([dict(column) for column in columns], labels)
        parts = loss if isinstance(loss, dict) else {"base_loss": loss}
        return {**parts, "smart": self.config.weight * self.smart_output.loss}

    def _around(self, columns: Columns, labels: Tensor | None) -> tuple[Any, SmartOutput]:
        """The loss of these columns, and R_s around its pass."""
        self._check(columns)
        regularizer, losses = self._regularizer_of_model(), []
        clean = ColumnEmbeddings(regularizer.layer, columns)

        def run() -> Tensor:
            with clean.watched(), _sentences(unwrapped(self.model)) as sentences:
                losses.append(self.loss(_copies(columns), labels))
            self._check_calls(sentences, len(columns))
            return self._outputs(sentences)

        function = ModelFunction(
            lambda x: self._outputs(self._perturbed(clean, columns, x)), self.divergence, {}
        )
        outputs, state = function.clean(run)
        function.dtype = clean.dtype
        mask = clean.joined(regularizer.mask)
        around = regularizer.regularizer.around(clean.embeddings, outputs, mask, function, state)
        return losses[0], around.output(None)

    def _perturbed(self, clean: ColumnEmbeddings, columns: Columns, x: Tensor) -> list[Tensor]:
        """Sentence embeddings where the embedding layer gives ``x``."""
        model = unwrapped(self.model)
        with clean.replaced(x):
            return [model(column)["sentence_embedding"] for column in _copies(columns)]

    def _outputs(self, sentences: list[Tensor]) -> Tensor:
        if self.outputs is not None:
            return self.outputs(sentences)
        if _has_classifier(self.loss):
            return _classifier_logits(self.loss, sentences)
        return _similarity(self.loss)(*sentences)

    def _regularizer_of_model(self) -> TransformersRegularizer:
        """One per model; the Trainer may give the loss another."""
        model = unwrapped(self.model)
        check_hookable(model)
        encoder = getattr(model[0], "auto_model", None)
        if encoder is None:
            raise ValueError("SmartLoss: the model's first module must be a transformer")
        if self._regularizer is None or self._regularizer.model is not encoder:
            settings = (self.config, self.divergence)
            tokenizer = getattr(model, "tokenizer", None)
            make = SmartRegularizer.for_transformers
            self._regularizer = make(encoder, *settings, tokenizer=tokenizer)
        return self._regularizer

    def _check(self, columns: Columns) -> None:
        if len(columns) != 2 and self.outputs is None:
            raise ValueError(
                f"SmartLoss: R_s is of a pair's similarity and the batch has {len(columns)} "
                "columns; say what it is of: outputs=lambda sentences: ..."
            )

    def _check_calls(self, sentences: list[Tensor], num_columns: int) -> None:
        if len(sentences) != num_columns or not all(s.requires_grad for s in sentences):
            raise ValueError(
                f"SmartLoss: {type(self.loss).__name__} does not call its model once per column "
                "with a graph; losses that cache, merge or truncate are not supported"
            )


def _is_a(loss: nn.Module, name: str) -> bool:
    """Whether a loss is of a class of sentence-transformers, whose modules move with versions."""
    theirs = [k for k in type(loss).__mro__ if k.__module__.startswith("sentence_transformers.")]
    return name in [kind.__name__ for kind in theirs]


def _has_classifier(loss: nn.Module) -> bool:
    return _is_a(loss, "SoftmaxLoss")


def _similarity(loss: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """[num_examples, dimension] twice -> [num_examples]."""
    return loss.similarity_fct if _is_a(loss, "CoSENTLoss") else torch.cosine_similarity


def _classifier_logits(loss: nn.Module, sentences: list[Tensor]) -> Tensor:
    """``SoftmaxLoss``'s logits of sentence embeddings that are there."""
    model = loss.model
    loss.model = _Given(sentences)
    try:
        return loss([{}] * len(sentences), None)[1]
    finally:
        loss.model = model


class _Given(nn.Module):
    """Stands for a SentenceTransformer: gives these embeddings, one per call."""

    def __init__(self, sentences: list[Tensor]):
        super().__init__()
        self._sentences = iter(sentences)

    def forward(self, features: dict[str, Any]) -> dict[str, Tensor]:
        return {"sentence_embedding": next(self._sentences)}


@contextmanager
def _sentences(model: nn.Module) -> Iterator[list[Tensor]]:
    """The sentence embeddings of the model's calls inside."""
    sentences: list[Tensor] = []
    hook = lambda module, args, output: sentences.append(output["sentence_embedding"])  # noqa: E731
    handle = model.register_forward_hook(hook)
    try:
        yield sentences
    finally:
        handle.remove()


def _copies(columns: Columns) -> list[dict[str, Any]]:
    """A SentenceTransformer writes its results into what it is called on."""
    return [dict(column) for column in columns]
