"""SMART around a model of transformers that is called on token ids.

The embedding layer's output, with positions, token types, LayerNorm and dropout, is what is
perturbed. A hook sees it in the clean pass and replaces it in the others, so that nothing of the
layer happens twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.divergence import SQUARED, SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.model_function import ModelFunction, compute_dtype
from sbrrt_fast.smart.regularizer import SmartOutput, SmartRegularizer
from sbrrt_fast.smart.replay import RandomState

SPECIAL = ("bos", "eos", "cls", "sep", "pad")


@dataclass
class SeenPass:
    """What is remembered of a clean pass.

    Attributes:
        state: of the generators before it, None if nothing was drawn.
        embeddings: the embedding layer's output, with a graph where autograd records.
        dtype: of the model's products. num_calls: of the layer.
    """

    state: RandomState | None = None
    embeddings: Tensor | None = None
    dtype: torch.dtype | None = None
    num_calls: int = 0


class TransformersRegularizer:
    """R_s of a model called on batches; see ``SmartRegularizer.for_transformers``."""

    def __init__(
        self,
        model: nn.Module,
        config: SmartConfig | None = None,
        divergence: Divergence | None = None,
        *,
        tokenizer: Any = None,
        special_ids: Iterable[int] | None = None,
        embedding_layer: nn.Module | None = None,
        backend: str = "auto",
    ):
        self.model, self._inner = model, unwrapped(model)
        check_hookable(self._inner)
        settings = getattr(self._inner, "config", None)
        self.divergence = divergence or divergence_of_model(settings)
        self.layer = embedding_layer or embedding_layer_of(self._inner)
        if special_ids is None:
            special_ids = special_ids_of(settings if tokenizer is None else tokenizer)
        self.special_ids = sorted(set(special_ids))
        self.regularizer = SmartRegularizer(self.replaced, config, self.divergence, backend)

    @property
    def config(self) -> SmartConfig:
        """The mechanism's resolved settings."""
        return self.regularizer.config

    def __call__(self, *, noise: Tensor | None = None, **batch: Any) -> SmartOutput:
        """R_s of a batch, and the model's own output of it.

        Args:
            noise: standard normal, the embeddings' shape; drawn from torch's generator if None.
            batch: what the model takes, labels too: ``model_output.loss`` is its task loss then.

        Raises:
            ValueError: the model or the batch does not fit, with what to do.
            ConfigError: a setting asks for differences below the compute dtype's resolution.
        """
        with self.clean_pass() as seen:
            result = self.model(**batch)
        return self.around(seen, result, batch, noise)

    @contextmanager
    def clean_pass(self) -> Iterator[SeenPass]:
        """Inside, one call of the model is watched: the clean pass of ``around``."""
        seen, before = SeenPass(), RandomState()

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            output = _with_graph(output)
            seen.num_calls += 1
            seen.embeddings, seen.dtype = output, compute_dtype(output)
            return output

        handle = self.layer.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()
        seen.state = before if before.has_moved() else None

    def around(
        self, seen: SeenPass, result: Any, batch: Mapping[str, Any], noise: Tensor | None = None
    ) -> SmartOutput:
        """R_s around a clean pass.

        Args:
            seen: of ``clean_pass``. result: what the model returned there. batch: its arguments.
        """
        check_calls(seen.num_calls, self.layer)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        function = ModelFunction(self.replaced, self.divergence, inputs, seen.dtype)
        function.replay(seen.state)
        mask = self.mask(seen.embeddings, batch)
        around = self.regularizer.around(seen.embeddings, result, mask, function, seen.state)
        return replace(around.output(noise), model_output=result)

    def mask(self, embeddings: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """bool [num_sequences, max_length]: tokens that may be perturbed."""
        mask = batch.get("attention_mask")
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        if mask.shape != embeddings.shape[:2]:
            raise ValueError(
                f"SmartRegularizer: attention_mask must be {tuple(embeddings.shape[:2])} for "
                f"embeddings {tuple(embeddings.shape)}, got {tuple(mask.shape)}"
            )
        mask, ids = mask.bool(), batch.get("input_ids")
        if self.config.perturb_special or ids is None:
            return mask
        for special in self.special_ids:  # no list is copied to the device
            mask = mask & (ids != special)
        return mask

    def replaced(self, embeddings: Tensor, **inputs: Any) -> Any:
        """The model's result where the embedding layer gives these embeddings."""
        calls = []

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            calls.append(module)
            return embeddings

        handle = self.layer.register_forward_hook(hook)
        try:
            result = self._inner(**inputs)
        finally:
            handle.remove()
        check_calls(len(calls), self.layer)
        return result


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of DistributedDataParallel, whose forward would share buffers again.

    Gradients of what is called without the wrapper are reduced with the others.
    """
    parallel = torch.nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, parallel) else model


def check_hookable(model: nn.Module) -> None:
    """ValueError for a model that does not call its own layers.

    A compiled graph has no place for a hook, and DataParallel calls copies.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "SmartRegularizer: DataParallel calls copies of the model; start a process per GPU "
            "instead, which train in DistributedDataParallel: torchrun --nproc-per-node 2 script.py"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "SmartRegularizer: a compiled model runs no hook on its embedding layer; compile "
            "what comes after it: model.base_model.encoder.compile()"
        )


def embedding_layer_of(model: nn.Module) -> nn.Module:
    """``embeddings`` of the encoder, or where a model has none the word embeddings.

    Raises:
        ValueError: it has neither.
    """
    if hasattr(model, "get_base_model"):  # of peft
        model = model.get_base_model()
    layer = getattr(getattr(model, "base_model", model), "embeddings", None)
    if not isinstance(layer, nn.Module) and hasattr(model, "get_input_embeddings"):
        layer = model.get_input_embeddings()
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"SmartRegularizer: {type(model).__name__} has no embedding layer that is known; "
            "name the module whose output is to be perturbed: embedding_layer=model.my_embeddings"
        )
    return layer


def divergence_of_model(settings: Any) -> Divergence:
    """Squared difference where transformers trains values, else symmetric KL.

    Raises:
        ValueError: labels that exclude nothing have no distribution over classes.
    """
    problem = getattr(settings, "problem_type", None)
    if problem == "multi_label_classification":
        raise ValueError(
            "SmartRegularizer: several labels at once are no distribution over classes; give a "
            "sbrrt_fast.smart.divergence.Divergence of your own as divergence"
        )
    is_value = problem == "regression" or (
        problem is None and getattr(settings, "num_labels", None) == 1
    )
    return SQUARED if is_value else SYMMETRIC_KL


def special_ids_of(holder: Any) -> list[int]:
    """Ids of a tokenizer's or a configuration's special tokens, as far as it has them."""
    ids = (getattr(holder, f"{name}_token_id", None) for name in SPECIAL)
    return [i for i in ids if isinstance(i, int)]


def check_calls(num_calls: int, layer: nn.Module) -> None:
    """ValueError unless the embedding layer was called once."""
    if num_calls == 1:
        return
    name = type(layer).__name__
    if num_calls:
        raise ValueError(
            f"SmartRegularizer: the model calls {name} {num_calls} times in a pass; give its own "
            "calls as functions of embeddings: SmartRegularizer(model_fn)"
        )
    raise ValueError(
        f"SmartRegularizer: the model's pass does not reach {name}; give batches with input_ids, "
        "or the layer that it does reach as embedding_layer"
    )


def _with_graph(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 3:
        raise ValueError(
            "SmartRegularizer: the embedding layer must return one tensor [num_sequences, "
            f"max_length, hidden], got {getattr(output, 'shape', type(output).__name__)}"
        )
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.detach().requires_grad_()
