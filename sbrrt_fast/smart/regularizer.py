"""SMART's smoothness regulariser R_s, usable in any training loop.

    regularizer = SmartRegularizer(model_fn)
    smart = regularizer(embeddings, mask=mask)
    (task_loss(smart.logits) + weight * smart.loss).backward()

``smart.ascent`` has the mathematics; here autograd applies the model's Jacobian, in the ways of
``smart.jacobians``. Source: arXiv 1911.03437, section 3.1 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.ascent import Ascent, Tokens, tangent_gradient
from sbrrt_fast.smart.autograd_pass import AutogradPass
from sbrrt_fast.smart.divergence import SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.jacobian_choice import Choice, ChosenJacobian
from sbrrt_fast.smart.jacobians import AutogradJacobian
from sbrrt_fast.smart.model_function import ModelFn, ModelFunction, tensor_of
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.smart.replay import RandomState, replayed

if TYPE_CHECKING:
    from sbrrt_fast.smart.transformers import TransformersRegularizer

__all__ = ["AutogradJacobian", "AutogradPass", "SmartOutput", "SmartRegularizer"]


@dataclass(frozen=True)
class SmartOutput:
    """One evaluation of the regulariser.

    Attributes:
        loss: R_s, a scalar; gradients flow through the clean and the adversarial output.
        delta: the perturbation, of the embeddings' shape, detached.
        branch: ``forward`` or ``linear``, how R_s was evaluated.
        jacobian: how the ascent's products with the Jacobian were taken: ``rows``, ``forward``,
            ``reverse`` or ``finite``; see ``smart.jacobians``.
        tangent: the same of the linear branch's change, which is differentiated; else None.
        logits: of the clean pass, as the model gave them.
        random_state: before the clean pass, where the regulariser ran it and it dropped out.
        model_output: all that the model returned, of ``SmartRegularizer.for_transformers``.
    """

    loss: Tensor
    delta: Tensor
    branch: str
    jacobian: str
    tangent: str | None
    logits: Tensor
    random_state: RandomState | None
    _around: Around = field(repr=False)
    model_output: Any = field(default=None, repr=False)

    @torch.no_grad()
    def gain(self, noise: Tensor | None = None) -> Tensor:
        """R_s(delta) / R_s(a random direction of the same norms), a scalar.

        To be called before the weights change. It moves no generator, so what follows is as it
        would be without it.
        """
        with replayed(RandomState()):
            return self._around.gain(self.delta, noise)


class SmartRegularizer:
    """R_s of a model given as a function of its embeddings.

    Args:
        model_fn: (embeddings, **inputs) -> logits [num_examples, num_classes], or with one class
            [num_examples, 1] or [num_examples] of a sigmoid; or values [num_examples] or
            [num_examples, 1] with ``divergence=SQUARED``. Also what has ``.logits``, or a tuple
            that begins with them. Dropout may be on where the regulariser runs the clean pass.
        config: the mechanism's settings; ``SmartConfig()`` is the ``adversarial`` preset. Its
            ``weight`` is for the caller to apply.
        divergence: ``SYMMETRIC_KL`` or ``SQUARED``.
        backend: implementation of the ascent step.
        clean_fn: the model as it gave the clean logits, where ``model_fn`` has other dropout masks;
            the tangent of the ascent is its.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        config: SmartConfig | None = None,
        divergence: Divergence = SYMMETRIC_KL,
        backend: str = "auto",
        clean_fn: ModelFn | None = None,
    ):
        self.model_fn, self.backend = model_fn, backend
        self.clean_fn = clean_fn or model_fn
        self.config = resolve(config or SmartConfig())
        self.divergence = divergence
        self._choices: dict[bool, Choice] = {}

    @staticmethod
    def for_transformers(
        model: torch.nn.Module,
        config: SmartConfig | None = None,
        divergence: Divergence | None = None,
        **options: Any,
    ) -> TransformersRegularizer:
        """R_s of a model of transformers, called as the model is: ``regularizer(**batch)``.

        Args:
            model: takes ``input_ids`` and ``attention_mask``, gives ``logits``; in DDP or not.
            divergence: by default ``SQUARED`` where the model's configuration says that it gives
                values (``num_labels`` 1 or ``problem_type`` regression), else ``SYMMETRIC_KL``.
            options: ``tokenizer`` or ``special_ids``, whose special tokens are left alone unless
                ``config.perturb_special``; by default the configuration's, as far as it has them.
                ``embedding_layer``, the module whose output is perturbed, by default the encoder's
                ``embeddings``, and the word embeddings of a model without. ``backend``.

        Raises:
            ValueError: no embedding layer or no divergence can be told.
        """
        from sbrrt_fast.smart.transformers import TransformersRegularizer

        return TransformersRegularizer(model, config, divergence, **options)

    @property
    def reasons(self) -> dict[str, str]:
        """Why a way to apply the Jacobian was passed over, by its name, as far as was tried."""
        choices = self._choices.values()
        return {kind: why for choice in choices for kind, why in choice.reasons.items()}

    def __call__(
        self,
        embeddings: Tensor,
        logits: Any = None,
        mask: Tensor | None = None,
        *,
        sequence: Tensor | None = None,
        noise: Tensor | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> SmartOutput:
        """R_s at these embeddings.

        Args:
            embeddings: [num_sequences, max_length, hidden], or [num_tokens, hidden] with
                ``sequence``; the embedding layer's output. With one output per sequence of the
                former the Jacobian is one row of each.
            logits: ``model_fn(embeddings)``, as already computed for the task loss. Where both
                carry a graph the ascent pulls back through it. None: the regulariser computes them,
                and every other pass has their dropout masks: torch's generators are put back to
                where they were, and go on afterwards as after one pass.
            mask: bool, the embeddings' shape without the last dimension; True where a token may
                be perturbed (never at padding).
            sequence: int64 [num_tokens], the sequence of each token, ascending from 0.
            noise: standard normal, the embeddings' shape; drawn from torch's generator if None.
            inputs: keyword arguments of ``model_fn`` and ``clean_fn``.

        Raises:
            ValueError: shapes or dtypes do not fit, the outputs do not depend on the embeddings,
                or the model draws random numbers and logits were given.
            ConfigError: the setting asks for differences below the compute dtype's resolution.
        """
        around = self._around(embeddings, logits, mask, sequence, inputs)
        return around.output(noise)

    @torch.no_grad()
    def gain(
        self,
        embeddings: Tensor,
        logits: Any,
        mask: Tensor,
        delta: Tensor,
        *,
        sequence: Tensor | None = None,
        noise: Tensor | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """R_s(delta) / R_s(a random direction of the same norms): what the adversary earns.

        Near 1 the perturbation is random noise. Arguments as in the call; a scalar. With dropout:
        ``SmartOutput.gain``.
        """
        return self._around(embeddings, logits, mask, sequence, inputs).gain(delta, noise)

    def tangent_gradient(self, embeddings: Tensor, logits: Any, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, to first order in delta."""
        with torch.no_grad():
            return tangent_gradient(self._clean(embeddings, logits), delta)

    def finite_gradient(self, embeddings: Tensor, logits: Any, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""
        return self._clean(embeddings, logits).finite_gradient(delta)

    def _around(
        self,
        embeddings: Tensor,
        logits: Any,
        mask: Tensor | None,
        sequence: Tensor | None,
        inputs: Mapping[str, Any] | None,
    ) -> Around:
        model, state = self._function(self.model_fn, inputs), None
        _check_embeddings(embeddings)
        if logits is None:
            embeddings = _with_graph(embeddings)
            run = lambda: self.model_fn(embeddings, **model.inputs)  # noqa: E731
            logits, state = model.clean(run)
        return self.around(embeddings, logits, mask, model, state, sequence)

    def around(
        self,
        embeddings: Tensor,
        logits: Any,
        mask: Tensor | None,
        model: ModelFunction,
        state: RandomState | None,
        sequence: Tensor | None = None,
    ) -> Around:
        """What can be asked around a clean pass that ``model`` has had.

        Args: as in the call; state: see ``SmartOutput``.
        """
        tokens = _tokens(embeddings, mask, sequence)
        ascent = Ascent(self.config, model.eps(embeddings), self.backend)
        clean = self._clean(embeddings, logits, model)
        return Around(ascent, clean, tokens, mask, tensor_of(logits), state)

    def _function(self, function: ModelFn, inputs: Mapping[str, Any] | None) -> ModelFunction:
        return ModelFunction(function, self.divergence, inputs or {})

    def _clean(
        self, embeddings: Tensor, logits: Any, model: ModelFunction | None = None
    ) -> AutogradPass:
        model = model or self._function(self.model_fn, None)
        outputs = model.outputs(logits)
        tangents = model
        if self.clean_fn is not self.model_fn:
            tangents = self._function(self.clean_fn, model.inputs)
        jacobian = ChosenJacobian(self._choice(embeddings, outputs), tangents, embeddings, outputs)
        return AutogradPass(model, self.divergence, embeddings, outputs, jacobian)

    def _choice(self, embeddings: Tensor, outputs: Tensor) -> Choice:
        """One row per sequence, where each has one output of its own."""
        num_classes = 1 if outputs.dim() == 1 else outputs.shape[1]
        has_one = num_classes == (2 if self.divergence.is_of_classes else 1)
        has_rows = has_one and embeddings.dim() == 3 and len(outputs) == len(embeddings)
        return self._choices.setdefault(has_rows, Choice(has_rows))


class Around:
    """A clean pass with what is asked around it: the ascent, R_s and the gain.

    Args:
        ascent, clean, tokens: see ``smart.ascent``. mask: bool, the embeddings' shape without the
            last dimension. logits: of the clean pass. state: see ``SmartOutput``.
    """

    def __init__(
        self,
        ascent: Ascent,
        clean: AutogradPass,
        tokens: Tokens,
        mask: Tensor,
        logits: Tensor,
        state: RandomState | None,
    ):
        self.ascent, self.clean, self.tokens, self.mask = ascent, clean, tokens, mask
        self.logits, self.state = logits, state

    def output(self, noise: Tensor | None) -> SmartOutput:
        """Climbs from this noise, or from torch's, and evaluates R_s there."""
        ascent, clean = self.ascent, self.clean
        delta = ascent.climb(clean, ascent.start(self._noise(noise), self.mask), self.tokens)
        loss = ascent.values(clean, delta).mean()
        choice, is_linear = clean.jacobian.choice, ascent.branch == "linear"
        kind = choice.ascent[0] if ascent.is_tangent else "finite"
        tangent = choice.tangent[0] if is_linear else None
        state = self.state
        return SmartOutput(loss, delta, ascent.branch, kind, tangent, self.logits, state, self)

    def gain(self, delta: Tensor, noise: Tensor | None) -> Tensor:
        """See ``SmartOutput.gain``."""
        delta = delta.to(self.clean.embeddings.dtype)
        return self.ascent.gain(self.clean, delta, self._noise(noise), self.tokens)

    def _noise(self, noise: Tensor | None) -> Tensor:
        x = self.clean.embeddings
        if noise is None:
            return torch.randn_like(x)
        if noise.shape != x.shape:
            raise ValueError(
                f"SmartRegularizer: noise must be {tuple(x.shape)} as the embeddings are, got "
                f"{tuple(noise.shape)}"
            )
        return noise.to(x.dtype)


def _tokens(embeddings: Tensor, mask: Tensor | None, sequence: Tensor | None) -> Tokens:
    """Whose tokens these are, after checking shapes."""
    if mask is None:
        raise ValueError("SmartRegularizer: mask is missing: True where a token is perturbed")
    if mask.shape != embeddings.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(
            f"SmartRegularizer: mask must be bool {tuple(embeddings.shape[:-1])}, got "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    if sequence is not None:
        if sequence.shape != mask.shape or mask.dim() != 1:
            raise ValueError(
                f"SmartRegularizer: sequence goes with [num_tokens, hidden] embeddings; got "
                f"{tuple(sequence.shape)} for {tuple(embeddings.shape)}"
            )
        return Tokens(mask, sequence, mask.shape[0])  # at most one sequence per token
    if embeddings.dim() != 3:
        raise ValueError(
            "SmartRegularizer: embeddings must be [num_sequences, max_length, hidden], or "
            f"[num_tokens, hidden] with sequence; got {tuple(embeddings.shape)}"
        )
    num_sequences, max_length = mask.shape
    rows = torch.arange(num_sequences, device=mask.device)
    return Tokens(mask.reshape(-1), rows.repeat_interleave(max_length), num_sequences)


def _check_embeddings(embeddings: Tensor) -> None:
    if not embeddings.is_floating_point():
        raise ValueError(
            f"SmartRegularizer: embeddings must be floating, got {embeddings.dtype}; give the "
            "embedding layer's output and not token ids"
        )


def _with_graph(embeddings: Tensor) -> Tensor:
    """Embeddings that a clean pass is pulled back to."""
    if embeddings.requires_grad or not torch.is_grad_enabled():
        return embeddings
    return embeddings.detach().requires_grad_()
