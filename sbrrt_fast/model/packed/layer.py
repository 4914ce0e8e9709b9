"""One encoder layer, forward, tangent and backward side by side.

    q, k, v = x Wqkv^T + b        y = LN1(x + dropout(attention(q, k, v) Wo^T + b))
    next x  = LN2(y + dropout(gelu(y Wi^T + b) Wu^T + b))

A pass works on blocks of the workspace's rows. A tangent is in the rows after those that are
computed with it, so that both go through each matrix product together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import StreamRows
from sbrrt_fast.model.packed.weights import LayerWeights
from sbrrt_fast.model.packed.workspace import Activations, Cotangents, Hidden, padded_rows


@dataclass(frozen=True)
class Block:
    """Rows of the workspace and the tokens in them.

    Attributes:
        tokens: their sequences and dropout. start: their first row.
    """

    tokens: StreamRows
    start: int = 0

    @cached_property
    def rows(self) -> tuple[int, int]:
        return self.start, self.start + self.tokens.num_tokens

    @property
    def num_sequences(self) -> int:
        return self.tokens.num_sequences


@dataclass(frozen=True)
class Tangent:
    """The tangent of a block that is computed now or was before; it starts at row ``start``."""

    block: Block
    start: int

    @cached_property
    def rows(self) -> tuple[int, int]:
        return self.start, self.start + self.block.tokens.num_tokens


class Norm(NamedTuple):
    """A residual LayerNorm: names of its tensors in ``Activations``, ``Cotangents`` and
    ``LayerWeights``, and its index in ``Workspace.norm_sums``."""

    x: str
    residual: str
    mean: str
    rstd: str
    narrow: str
    bias: str
    weight: str
    shift: str
    index: int


NORM1 = Norm(
    "attended", "x", "mean1", "rstd1", "narrow1", "attention_out_bias", "norm1", "shift1", 0
)
NORM2 = Norm("output", "y", "mean2", "rstd2", "narrow2", "outer_bias", "norm2", "shift2", 1)
Result = Callable[[tuple[int, int]], tuple[Tensor, Tensor]]  # of rows: float32, compute dtype


class Layer:
    """The passes of one layer.

    Args:
        ops: the writing ops of one backend, by name.
        config: the encoder's. index: of the layer. weights: of the layer.
    """

    def __init__(self, ops, config: BertConfig, index: int, weights: LayerWeights):
        self.ops, self.config, self.weights = ops, config, weights
        self.is_last = index == config.num_hidden_layers - 1
        self.attention_site = sites.attention_site(index)
        self.sites = {NORM1: sites.attention_output_site(index), NORM2: sites.output_site(index)}

    def forward(
        self,
        saved: Activations,
        next_saved: Activations | Hidden,
        primal: Block | None,
        tangent: Tangent | None,
    ) -> None:
        """``next_saved.x`` from ``saved.x``, and what backward needs.

        Args:
            primal: the rows to compute, or None. tangent: of the last of these, or of rows computed
                before; its rows follow those of ``primal``.
        """
        w, mm = self.weights, self.ops.mm_into
        both = saved.rows(*padded_rows(*_span(primal, tangent)))
        mm(both.x_low, w.qkv.t(), both.qkv)
        if primal:
            saved.rows(*primal.rows).qkv.add_(w.qkv_bias)
        self._attend(saved, primal, tangent)
        mm(both.context, w.attention_out.t(), both.attended)
        self._add_norm(NORM1, saved, _y_of(saved), primal, tangent)
        mm(both.y_low, w.inner.t(), both.inner)
        self._gelu(saved, primal, tangent)
        mm(both.activated, w.outer.t(), both.output)
        self._add_norm(NORM2, saved, _x_of(next_saved), primal, tangent)

    def backward(
        self,
        saved: Activations,
        d: Cotangents,
        blocks: Sequence[Block],
        norm_sums: Tensor | None = None,
    ) -> None:
        """Turns d of ``next_saved.x`` into d of ``saved.x``, ``d.hidden + d.product``.

        Of the last layer's result d is ``d.hidden`` alone.

        Args:
            blocks: adjacent rows, each with its own dropout, that share the products.
            norm_sums: float32 [num_sequences of the blocks, 2, 3, H], where the LayerNorms' sums
                over each sequence go, or None.
        """
        w, mm = self.weights, self.ops.mm_into
        g = d.rows(*padded_rows(*span_of(blocks)))
        self._add_norm_backward(NORM2, saved, d, blocks, norm_sums)
        mm(g.narrow2, w.outer, g.wide)
        self._gelu_backward(saved, d, blocks)
        mm(g.wide, w.inner, g.product)
        self._add_norm_backward(NORM1, saved, d, blocks, norm_sums)
        mm(g.narrow1, w.attention_out, g.context)
        self._attend_backward(saved, d, blocks)
        mm(g.qkv, w.qkv, g.product)

    def weight_gradients(
        self, saved: Activations, d: Cotangents, num_rows: int, grads: LayerWeights
    ) -> None:
        """The matrices' gradients over the first rows, from what ``backward`` has left of them."""
        mm, rows = self.ops.mm_into, padded_rows(0, num_rows)
        a, g = saved.rows(*rows), d.rows(*rows)
        mm(g.narrow2.t(), a.activated, grads.outer)
        mm(g.wide.t(), a.y_low, grads.inner)
        mm(g.narrow1.t(), a.context, grads.attention_out)
        mm(g.qkv.t(), a.x_low, grads.qkv)

    def _attend(self, saved: Activations, primal: Block | None, tangent: Tangent | None) -> None:
        if primal:
            a = saved.rows(*primal.rows)
            self.ops.attention_forward_into(
                *a.qkv.chunk(3, 1), *self._heads(primal), a.context, a.logsumexp
            )
        if tangent:
            a, t = saved.rows(*tangent.block.rows), saved.rows(*tangent.rows)
            qkv = *a.qkv.chunk(3, 1), *t.qkv.chunk(3, 1)
            self.ops.attention_jvp_into(*qkv, a.logsumexp, *self._heads(tangent.block), t.context)

    def _attend_backward(self, saved: Activations, d: Cotangents, blocks: Sequence[Block]) -> None:
        for block in blocks:
            a, g = saved.rows(*block.rows), d.rows(*block.rows)
            inputs = *a.qkv.chunk(3, 1), a.context, a.logsumexp
            self.ops.attention_backward_into(
                g.context, *inputs, *self._heads(block), *g.qkv.chunk(3, 1)
            )

    def _add_norm(
        self,
        norm: Norm,
        saved: Activations,
        result: Result,
        primal: Block | None,
        tangent: Tangent | None,
    ) -> None:
        w, others = self.weights, ()
        if tangent:
            a, t = saved.rows(*tangent.block.rows), saved.rows(*tangent.rows)
            tangents = getattr(t, norm.x), getattr(t, norm.residual)
            out, low = result(tangent.rows)
            others = *tangents, out, _copy_of(low)
        if primal:
            a, (out, low) = saved.rows(*primal.rows), result(primal.rows)
            self.ops.dropout_add_layernorm_forward_into(
                *_inputs(norm, a, w), getattr(w, norm.shift), self.config.layer_norm_eps,
                *self._dropout(primal, norm), out, _copy_of(low),
                getattr(a, norm.mean), getattr(a, norm.rstd), *others,
            )  # fmt: skip
        elif tangent:
            self.ops.dropout_add_layernorm_jvp_into(
                *tangents, *_inputs(norm, a, w), getattr(a, norm.mean), getattr(a, norm.rstd),
                *self._dropout(tangent.block, norm), *others[2:],
            )  # fmt: skip

    def _add_norm_backward(
        self,
        norm: Norm,
        saved: Activations,
        d: Cotangents,
        blocks: Sequence[Block],
        norm_sums: Tensor | None,
    ) -> None:
        w, first = self.weights, 0
        is_first = self.is_last and norm is NORM2  # of the way back
        for block in blocks:
            a, g = saved.rows(*block.rows), d.rows(*block.rows)
            sums = None
            if norm_sums is not None:
                sums = norm_sums[first : first + block.num_sequences, norm.index]
                first += block.num_sequences
            segments = None if sums is None else block.tokens.cu_seqlens
            product = None if is_first else g.product
            self.ops.dropout_add_layernorm_backward_into(
                g.hidden, product, *_inputs(norm, a, w), getattr(a, norm.mean),
                getattr(a, norm.rstd), *self._dropout(block, norm), getattr(g, norm.narrow),
                g.hidden, segments, sums,
            )  # fmt: skip

    def _gelu(self, saved: Activations, primal: Block | None, tangent: Tangent | None) -> None:
        bias, others = self.weights.inner_bias, ()
        if tangent:
            t = saved.rows(*tangent.rows)
            others = t.inner, t.activated
        if primal:
            a = saved.rows(*primal.rows)
            self.ops.bias_gelu_forward_into(a.inner, bias, a.activated, *others)
        elif tangent:
            a = saved.rows(*tangent.block.rows)
            self.ops.bias_gelu_jvp_into(t.inner, a.inner, bias, t.activated)

    def _gelu_backward(self, saved: Activations, d: Cotangents, blocks: Sequence[Block]) -> None:
        a, g = saved.rows(*span_of(blocks)), d.rows(*span_of(blocks))
        self.ops.bias_gelu_backward_into(g.wide, a.inner, self.weights.inner_bias, g.wide, None)

    def _heads(self, block: Block) -> tuple:
        """What attention takes after its tensors."""
        tokens, config = block.tokens, self.config
        dropout = tokens.attention(config.attention_probs_dropout_prob, self.attention_site)
        return tokens.cu_seqlens, tokens.max_length, config.num_attention_heads, *dropout

    def _dropout(self, block: Block, norm: Norm) -> tuple:
        config = self.config
        p, site = config.hidden_dropout_prob, self.sites[norm]
        return block.tokens.hidden(p, site)


def span_of(blocks: Sequence[Block]) -> tuple[int, int]:
    """The rows of adjacent blocks."""
    return blocks[0].rows[0], blocks[-1].rows[1]


def _span(primal: Block | None, tangent: Tangent | None) -> tuple[int, int]:
    """The rows that go through the products."""
    first = (primal or tangent).rows
    return first[0], (tangent or primal).rows[1]


def _inputs(norm: Norm, a: Activations, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, bias, residual, weight)."""
    return (
        getattr(a, norm.x),
        getattr(w, norm.bias),
        getattr(a, norm.residual),
        getattr(w, norm.weight),
    )


def _y_of(saved: Activations) -> Result:
    return lambda rows: (saved.rows(*rows).y, saved.rows(*rows).y_low)


def _x_of(saved: Activations) -> Result:
    return lambda rows: (saved.rows(*rows).x, saved.rows(*rows).x_low)


def _copy_of(low: Tensor) -> Tensor | None:
    """The copy to be written; in float32 there is none beside the result itself."""
    return None if low.dtype == torch.float32 else low
