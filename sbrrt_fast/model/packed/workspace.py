"""Saved activations: written once per pass, reused every round."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sbrrt_fast.model.config import BertConfig

ROW_STEP = 32  # products take whole multiples: libraries prepare a kernel for every new size


def padded_rows(start: int, stop: int) -> tuple[int, int]:
    """The rows of a product over ``start ... stop``: a few more, which nobody reads."""
    return start, start + -(-(stop - start) // ROW_STEP) * ROW_STEP


class RowViews:
    """Mixin: views of some rows of all tensors, made once."""

    def rows(self, start: int, stop: int):
        """The record over rows ``start ... stop``."""
        views = self.__dict__.setdefault("_views", {})
        if (start, stop) not in views:
            tensors = (getattr(self, f.name)[start:stop] for f in fields(self))
            views[start, stop] = type(self)(*tensors)
        return views[start, stop]

    def forget_views(self) -> None:
        self.__dict__.pop("_views", None)


@dataclass
class Activations(RowViews):
    """What one layer saves, R rows each; H hidden, F intermediate, A heads.

    Attributes:
        x: float32 [R, H], the layer's input; x_low: x in the compute dtype.
        qkv: [R, 3H]; context: [R, H], attention's result; logsumexp: float32 [R, A].
        attended: [R, H], context times its weight.
        y: float32 [R, H], after the first LayerNorm; y_low: y in the compute dtype.
        mean1, rstd1, mean2, rstd2: float32 [R], of the LayerNorms.
        inner: [R, F], y times its weight; activated: [R, F], after GELU.
        output: [R, H], activated times its weight.
    """

    x: Tensor
    x_low: Tensor
    qkv: Tensor
    context: Tensor
    logsumexp: Tensor
    attended: Tensor
    y: Tensor
    y_low: Tensor
    mean1: Tensor
    rstd1: Tensor
    inner: Tensor
    activated: Tensor
    output: Tensor
    mean2: Tensor
    rstd2: Tensor


@dataclass
class Cotangents(RowViews):
    """Gradients on their way back, one layer at a time.

    Attributes:
        hidden: float32 [R, H]; together with ``product`` [R, H] the gradient of the hidden states.
        narrow: [R, H], of what LayerNorm's dropout took; context: [R, H], of attention's result.
        wide: [R, F], in the feed-forward network; qkv: [R, 3H].
    """

    hidden: Tensor
    product: Tensor
    narrow: Tensor
    context: Tensor
    wide: Tensor
    qkv: Tensor


class Workspace:
    """Activations of every layer for up to a number of rows, which grows when it must.

    Args:
        config: the encoder's shape. dtype: the compute dtype; float32 shares ``x_low`` with ``x``.
        keep: False lets all layers use one piece of memory, for passes without a backward.
    """

    def __init__(self, config: BertConfig, dtype: torch.dtype, device, keep: bool = True):
        self.config, self.dtype, self.device, self.keep = config, dtype, device, keep
        self.capacity = 0
        self._saved: list[Activations] = []
        self._cotangents: Cotangents | None = None

    def layers(self, num_rows: int) -> list[Activations]:
        """The layers' activations and, last, those that hold the last layer's result in ``x``."""
        num_layers = self.config.num_hidden_layers
        _, num_rows = padded_rows(0, num_rows + ROW_STEP)
        if num_rows > self.capacity:
            self.capacity = max(num_rows, self.capacity * 5 // 4)
            self._saved = [self._allocate() for _ in range(num_layers + 1 if self.keep else 1)]
        for activations in self._saved:
            activations.forget_views()
        return self._saved if self.keep else self._saved * (num_layers + 1)

    def cotangents(self) -> Cotangents:
        """Gradients for as many rows as ``layers`` has made room for."""
        if self._cotangents is None or len(self._cotangents.hidden) < self.capacity:
            hidden, inner = self.config.hidden_size, self.config.intermediate_size
            self._cotangents = Cotangents(
                hidden=self._zeros(torch.float32, hidden),
                product=self._zeros(self.dtype, hidden),
                narrow=self._zeros(self.dtype, hidden),
                context=self._zeros(self.dtype, hidden),
                wide=self._zeros(self.dtype, inner),
                qkv=self._zeros(self.dtype, 3 * hidden),
            )
        self._cotangents.forget_views()
        return self._cotangents

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        tensors = {
            t.data_ptr(): t.nbytes
            for activations in self._saved
            for t in (getattr(activations, f.name) for f in fields(activations))
        }
        return sum(tensors.values())

    def _allocate(self) -> Activations:
        hidden, heads = self.config.hidden_size, self.config.num_attention_heads
        inner = self.config.intermediate_size
        x, y = self._zeros(torch.float32, hidden), self._zeros(torch.float32, hidden)
        is_low = self.dtype != torch.float32
        low = [self._zeros(self.dtype, hidden) for _ in range(2)] if is_low else [x, y]
        return Activations(
            x=x,
            x_low=low[0],
            qkv=self._zeros(self.dtype, 3 * hidden),
            context=self._zeros(self.dtype, hidden),
            logsumexp=self._zeros(torch.float32, heads),
            attended=self._zeros(self.dtype, hidden),
            y=y,
            y_low=low[1],
            mean1=self._zeros(torch.float32),
            rstd1=self._zeros(torch.float32),
            inner=self._zeros(self.dtype, inner),
            activated=self._zeros(self.dtype, inner),
            output=self._zeros(self.dtype, hidden),
            mean2=self._zeros(torch.float32),
            rstd2=self._zeros(torch.float32),
        )

    def _zeros(self, dtype: torch.dtype, *width: int) -> Tensor:
        # Zeros: rows that only round a product up meet zeros in the backward and must be finite.
        return torch.zeros(self.capacity, *width, dtype=dtype, device=self.device)
