"""A model as a function of its embeddings, whatever it returns and whether or not it drops out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.ops.symmetric_kl import bernoulli_logits
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.replay import RandomState, nothing_drawn, replayed

ModelFn = Callable[..., Any]
MASKS_ARE_GONE = (
    "SmartRegularizer: the model draws random numbers (dropout), so the given logits cannot be had "
    "again; let the regulariser run the clean pass: regularizer(embeddings, mask=mask), or call "
    "model.eval()"
)


class ModelFunction:
    """Embeddings -> outputs that the divergence takes, under the masks of one clean pass.

    Args:
        function: (embeddings, **inputs) -> logits or values: a tensor, what has ``.logits``, or a
            tuple that begins with them.
        divergence: of the outputs. inputs: keyword arguments of every call.
        dtype: of the model's products, where it enters an autocast of its own.
        masks_are_gone: the error where the clean pass's masks are not known and it had some.
    """

    def __init__(
        self,
        function: ModelFn,
        divergence: Divergence,
        inputs: Mapping[str, Any],
        dtype: torch.dtype | None = None,
        masks_are_gone: str = MASKS_ARE_GONE,
    ):
        self.function, self.divergence, self.inputs = function, divergence, inputs
        self.dtype = dtype
        self.shape: torch.Size | None = None
        self._masks: Callable = partial(nothing_drawn, masks_are_gone)

    def clean(self, run: Callable[[], Any]) -> tuple[Any, RandomState | None]:
        """What ``run`` returns, whose masks later calls have, and the state before it.

        The state is None if nothing was drawn.
        """
        before = RandomState()
        result = run()
        self.replay(before if before.has_moved() else None)
        return result, before if before.has_moved() else None

    def replay(self, state: RandomState | None) -> None:
        """Later calls draw their masks from this state on; None: they draw none."""
        self._masks = lambda: replayed(state)

    def eps(self, embeddings: Tensor) -> float:
        """Of the dtype of the model's products."""
        return torch.finfo(self.dtype or compute_dtype(embeddings)).eps

    def outputs(self, result: Any) -> Tensor:
        """The divergence's argument from what the model returns; see ``outputs_of``.

        Raises:
            ValueError: the result's shape is another than before.
        """
        outputs = outputs_of(tensor_of(result), self.divergence)
        if self.shape is None:
            self.shape = outputs.shape
        if outputs.shape != self.shape:
            raise ValueError(
                f"SmartRegularizer: the model gives {tuple(outputs.shape)} where the clean outputs "
                f"are {tuple(self.shape)}; give the logits of these embeddings"
            )
        return outputs

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Outputs at these embeddings, as a graph of autograd where it records."""
        with ExitStack() as stack:
            stack.enter_context(self._masks())
            if not torch.is_grad_enabled():
                stack.enter_context(uncached_autocast(embeddings))
            return self.outputs(self.function(embeddings, **self.inputs))


def tensor_of(result: Any) -> Tensor:
    """The logits in what a model returns.

    Raises:
        ValueError: there are none, or they are not floating.
    """
    if not isinstance(result, Tensor):
        if isinstance(result, Mapping) and "logits" in result:
            result = result["logits"]
        elif hasattr(result, "logits"):
            result = result.logits
        elif isinstance(result, tuple | list) and result:
            result = result[0]
    if not isinstance(result, Tensor):
        raise ValueError(
            "SmartRegularizer: the model must return a tensor, what has .logits, or a tuple that "
            f"begins with the logits; got {type(result).__name__}"
        )
    if not result.is_floating_point():
        raise ValueError(f"SmartRegularizer: logits must be floating, got {result.dtype}")
    return result


def outputs_of(logits: Tensor, divergence: Divergence) -> Tensor:
    """[num_examples, num_classes] or [num_examples]: one sigmoid logit becomes two classes.

    Raises:
        ValueError: other dimensions.
    """
    if logits.dim() not in (1, 2) or logits.numel() == 0:
        raise ValueError(
            "SmartRegularizer: logits must be [num_examples, num_classes], [num_examples, 1] or "
            f"[num_examples], got {tuple(logits.shape)}"
        )
    if logits.dim() == 2 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.dim() == 1 and divergence.is_of_classes:
        return bernoulli_logits(logits)
    return logits


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the model's products: autocast's where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


@contextmanager
def uncached_autocast(x: Tensor) -> Iterator[None]:
    """Autocast as it is, without its cache of weight copies.

    Copies made while autograd is off would be reused where it is on, and drop weight gradients. A
    model may enter an autocast of its own, whose copies are dropped in the end.
    """
    device = x.device.type
    is_enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype=dtype, enabled=is_enabled, cache_enabled=False):
        yield
        torch.clear_autocast_cache()
