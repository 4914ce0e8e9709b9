"""Saved activations and cotangents: written once per pass, reused every round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

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
class Hidden(RowViews):
    """Hidden states between layers, R rows.

    Attributes:
        x: float32 [R, H]; x_low: x in the compute dtype.
    """

    x: Tensor
    x_low: Tensor


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
    """Gradients on their way back through one layer; those of a product are its second factor.

    Attributes:
        hidden: float32 [R, H]; together with ``product`` [R, H] the gradient of the hidden states;
            both are all layers' one after the other. context: [R, H], likewise, of attention's
            result.
        narrow1, narrow2: [R, H], of what the LayerNorms' dropout took.
        wide: [R, F], in the feed-forward network; qkv: [R, 3H].
    """

    hidden: Tensor
    product: Tensor
    context: Tensor
    narrow1: Tensor
    narrow2: Tensor
    wide: Tensor
    qkv: Tensor


# The factors of the weights' gradients: what a product has read, and the gradient of its result.
PRODUCT_INPUTS = ("x_low", "y_low", "context", "activated")
PRODUCT_COTANGENTS = ("narrow1", "narrow2", "wide", "qkv")


class Workspace:
    """Activations of every layer for up to a number of rows, which grows when it must.

    Each name has one tensor over all layers, [num_layers, R, ...], so that one op can reach the
    same rows of all of them.

    Args:
        config: the encoder's shape. dtype: the compute dtype; float32 shares ``x_low`` with ``x``.
        keep: False lets all layers use one piece of memory, for passes without a backward.

    Attributes:
        activations: the tensors by name. cotangents: likewise, the last layer first, as the
            backward fills them; those that all layers share have one.
        norm_sums: float32 [num_layers, num_sequences, 2, 3, H], the last layer first: sums over a
            sequence's rows for the gradients of bias, weight and shift of both LayerNorms.
    """

    def __init__(self, config: BertConfig, dtype: torch.dtype, device, keep: bool = True):
        self.config, self.dtype, self.device, self.keep = config, dtype, device, keep
        self.capacity = self.num_sums = 0
        self.activations: dict[str, Tensor] = {}
        self.cotangents: dict[str, Tensor] = {}
        self.norm_sums = torch.empty(0)
        self._saved: list[Activations | Hidden] = []
        self._d: list[Cotangents] = []

    def reserve(
        self, num_rows: int, num_sequences: int
    ) -> tuple[list[Activations | Hidden], list[Cotangents]]:
        """Makes room for so many rows and their sequences; what was saved is lost.

        Returns:
            the layers' activations and, last, the hidden states that the last layer returns; and
            the layers' cotangents, empty without ``keep``.
        """
        _, num_rows = padded_rows(0, num_rows + 2 * ROW_STEP)
        if num_rows > self.capacity:
            self.capacity = max(num_rows, self.capacity * 5 // 4)
            self._allocate()
        if self.keep and num_sequences > self.num_sums:
            self.num_sums = max(num_sequences, self.num_sums * 5 // 4)
            shape = self.config.num_hidden_layers, self.num_sums, 2, 3, self.config.hidden_size
            self.norm_sums = torch.zeros(shape, device=self.device)
        for record in (*self._saved, *self._d):
            record.forget_views()
        return self._saved, self._d

    def clear_padding(self, stop: int) -> None:
        """Zeros behind row ``stop`` in the factors of weights' gradients.

        Rows that only round a product up meet each other there, whatever they held before.
        """
        factors = [self.activations[name] for name in PRODUCT_INPUTS]
        factors += [self.cotangents[name] for name in PRODUCT_COTANGENTS]
        rows = slice(stop, stop + ROW_STEP)
        torch._foreach_zero_([layer[rows] for factor in factors for layer in factor.unbind()])

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        tensors = (*self.activations.values(), *self.cotangents.values(), self.norm_sums)
        return sum({t.data_ptr(): t.nbytes for t in tensors}.values())

    def _allocate(self) -> None:
        self._saved.clear()  # the records that passes hold, so that the old memory goes first
        self._d.clear()
        self.activations, self.cotangents = {}, {}
        self.activations = self._new_activations()
        count = self.config.num_hidden_layers
        self._saved += [
            Activations(*self._of_layer(self.activations, Activations, i)) for i in range(count)
        ]
        self._saved.append(Hidden(*self._of_layer(self.activations, Hidden, count)))
        if self.keep:
            self.cotangents = self._new_cotangents()
            self._d += [
                Cotangents(*self._of_layer(self.cotangents, Cotangents, count - 1 - i))
                for i in range(count)
            ]

    @staticmethod
    def _of_layer(tensors: dict[str, Tensor], record: type, index: int) -> Iterator[Tensor]:
        """The tensors of a record of one layer; a tensor that layers share is that of all."""
        return (tensors[f.name][min(index, len(tensors[f.name]) - 1)] for f in fields(record))

    def _new_activations(self) -> dict[str, Tensor]:
        hidden, heads = self.config.hidden_size, self.config.num_attention_heads
        inner, layers = self.config.intermediate_size, self.config.num_hidden_layers
        layers = layers if self.keep else 1
        x = self._zeros(torch.float32, layers + self.keep, hidden)
        y = self._zeros(torch.float32, layers, hidden)
        is_low = self.dtype != torch.float32
        low = [self._zeros(self.dtype, len(z), hidden) if is_low else z for z in (x, y)]
        narrow, wide = (
            partial(self._zeros, self.dtype, layers, width) for width in (hidden, inner)
        )
        statistics = partial(self._zeros, torch.float32, layers)
        return {
            "x": x,
            "x_low": low[0],
            "qkv": self._zeros(self.dtype, layers, 3 * hidden),
            "context": narrow(),
            "logsumexp": self._zeros(torch.float32, layers, heads),
            "attended": narrow(),
            "y": y,
            "y_low": low[1],
            "mean1": statistics(),
            "rstd1": statistics(),
            "inner": wide(),
            "activated": wide(),
            "output": narrow(),
            "mean2": statistics(),
            "rstd2": statistics(),
        }

    def _new_cotangents(self) -> dict[str, Tensor]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        layers = self.config.num_hidden_layers
        return {
            "hidden": self._zeros(torch.float32, 1, hidden),
            "product": self._zeros(self.dtype, 1, hidden),
            "context": self._zeros(self.dtype, 1, hidden),
            "narrow1": self._zeros(self.dtype, layers, hidden),
            "narrow2": self._zeros(self.dtype, layers, hidden),
            "wide": self._zeros(self.dtype, layers, inner),
            "qkv": self._zeros(self.dtype, layers, 3 * hidden),
        }

    def _zeros(self, dtype: torch.dtype, num_layers: int, *width: int) -> Tensor:
        shape = num_layers, self.capacity, *width
        return torch.zeros(shape, dtype=dtype, device=self.device)
