"""One encoder layer, forward, tangent and backward side by side.

    q, k, v = x Wqkv^T + b        y = LN1(x + dropout(attention(q, k, v) Wo^T + b))
    next x  = LN2(y + dropout(gelu(y Wi^T + b) Wu^T + b))

A pass works on a block of the workspace's rows. The tangent of the clean rows rides in the rows
behind them, so that both go through each matrix product together; those rows are the adversarial
ones afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.weights import LayerWeights
from sbrrt_fast.model.packed.workspace import Activations, Cotangents, products


@dataclass(frozen=True)
class Block:
    """Rows of the workspace and the tokens in them.

    Attributes:
        stream: the tokens' batch and dropout. start: their first row.
    """

    stream: DropoutStream
    start: int = 0

    @cached_property
    def rows(self) -> tuple[int, int]:
        return self.start, self.start + self.stream.batch.num_tokens

    @cached_property
    def behind(self) -> tuple[int, int]:
        """As many rows after them."""
        end = self.rows[1]
        return end, end + self.stream.batch.num_tokens


class Layer:
    """The passes of one layer.

    Args:
        ops: the fused ops of one backend, see ``ops.explicit``.
        config: the encoder's. index: of the layer. weights: of the layer.
    """

    def __init__(self, ops, config: BertConfig, index: int, weights: LayerWeights):
        self.ops, self.config, self.weights = ops, config, weights
        self.attention_site = sites.attention_site(index)
        self.site1, self.site2 = sites.attention_output_site(index), sites.output_site(index)

    def advance(
        self, kept: Activations, following: Activations, primal: Block | None, tangent: Block | None
    ) -> None:
        """``following.x`` from ``kept.x``, and what backward needs.

        Args:
            primal: the rows to compute, or None.
            tangent: rows, computed now or before, whose tangent is in the rows behind them.
        """
        w, mm, both = self.weights, self.ops.mm, kept.rows(*products(*_span(primal, tangent)))
        mm(both.x_low, w.qkv.t(), out=both.qkv)
        if primal:
            kept.rows(*primal.rows).qkv.add_(w.qkv_bias)
        self._attend(kept, primal, tangent)
        mm(both.context, w.attention_out.t(), out=both.attended)
        self._add_norm1(kept, primal, tangent)
        mm(both.y_low, w.inner.t(), out=both.inner)
        self._gelu(kept, primal, tangent)
        mm(both.activated, w.outer.t(), out=both.output)
        self._add_norm2(kept, following, primal, tangent)

    def backward(
        self,
        kept: Activations,
        d: Cotangents,
        blocks: list[Block],
        gradients: LayerWeights | None = None,
    ) -> None:
        """Turns d of ``following.x`` (``d.hidden + d.product``) into d of ``kept.x``.

        Args:
            blocks: adjacent rows, each with its own dropout, that share the products.
            gradients: where the weights' gradients go, or None to compute none of them.
        """
        w, mm, rows = self.weights, self.ops.mm, span_of(blocks)
        a, g = kept.rows(*products(*rows)), d.rows(*products(*rows))
        self._add_norm2_backward(kept, d, blocks, gradients)
        mm(g.narrow, w.outer, out=g.wide)
        if gradients:
            mm(g.narrow.t(), a.activated, out=gradients.outer)
        self._gelu_backward(kept, d, blocks, gradients)
        mm(g.wide, w.inner, out=g.product)
        if gradients:
            mm(g.wide.t(), a.y_low, out=gradients.inner)
        self._add_norm1_backward(kept, d, blocks, gradients)
        mm(g.narrow, w.attention_out, out=g.context)
        if gradients:
            mm(g.narrow.t(), a.context, out=gradients.attention_out)
        self._attend_backward(kept, d, blocks)
        mm(g.qkv, w.qkv, out=g.product)
        if gradients:
            mm(g.qkv.t(), a.x_low, out=gradients.qkv)
            torch.sum(d.rows(*rows).qkv, 0, dtype=torch.float32, out=gradients.qkv_bias)

    def _attend(self, kept: Activations, primal: Block | None, tangent: Block | None) -> None:
        if primal:
            a = kept.rows(*primal.rows)
            self.ops.attention_forward(
                *a.qkv.chunk(3, 1), *self._heads(primal), out=a.context, logsumexp=a.logsumexp
            )
        if tangent:
            a, t = kept.rows(*tangent.rows), kept.rows(*tangent.behind)
            qkv = (*a.qkv.chunk(3, 1), *t.qkv.chunk(3, 1))
            self.ops.attention_jvp(*qkv, a.logsumexp, *self._heads(tangent), out=t.context)

    def _attend_backward(self, kept: Activations, d: Cotangents, blocks: list[Block]) -> None:
        for block in blocks:
            a, g = kept.rows(*block.rows), d.rows(*block.rows)
            saved = (*a.qkv.chunk(3, 1), a.context, a.logsumexp)
            self.ops.attention_backward(g.context, *saved, *self._heads(block), out=g.qkv)

    def _add_norm1(self, kept: Activations, primal: Block | None, tangent: Block | None) -> None:
        w = self.weights
        if primal:
            a = kept.rows(*primal.rows)
            self.ops.layernorm_forward(
                a.attended, w.attention_out_bias, a.x, w.norm1, w.shift1,
                self.config.layer_norm_eps, *self._hidden(primal, self.site1),
                out=a.y, low=a.y_low, mean=a.mean1, rstd=a.rstd1,
            )  # fmt: skip
        if tangent:
            a, t = kept.rows(*tangent.rows), kept.rows(*tangent.behind)
            self.ops.layernorm_jvp(
                t.attended, t.x, a.attended, w.attention_out_bias, a.x, w.norm1, a.mean1, a.rstd1,
                *self._hidden(tangent, self.site1), out=t.y, low=t.y_low,
            )  # fmt: skip

    def _add_norm1_backward(
        self, kept: Activations, d: Cotangents, blocks: list[Block], gradients: LayerWeights | None
    ) -> None:
        w, found = self.weights, []
        for block in blocks:
            a, g = kept.rows(*block.rows), d.rows(*block.rows)
            found.append(
                self.ops.layernorm_backward(
                    g.hidden, g.product, a.attended, w.attention_out_bias, a.x, w.norm1, a.mean1,
                    a.rstd1, *self._hidden(block, self.site1), gradients is not None,
                    hidden=g.hidden, low=g.narrow,
                )
            )  # fmt: skip
        if gradients:
            _put(found, gradients.attention_out_bias, gradients.norm1, gradients.shift1)

    def _gelu(self, kept: Activations, primal: Block | None, tangent: Block | None) -> None:
        bias = self.weights.inner_bias
        if primal:
            a = kept.rows(*primal.rows)
            self.ops.gelu_forward(a.inner, bias, out=a.activated)
        if tangent:
            a, t = kept.rows(*tangent.rows), kept.rows(*tangent.behind)
            self.ops.gelu_jvp(t.inner, a.inner, bias, out=t.activated)

    def _gelu_backward(
        self, kept: Activations, d: Cotangents, blocks: list[Block], gradients: LayerWeights | None
    ) -> None:
        rows = span_of(blocks)
        a, g = kept.rows(*rows), d.rows(*rows)
        need = gradients is not None
        bias = self.ops.gelu_backward(g.wide, a.inner, self.weights.inner_bias, need, out=g.wide)
        if need:
            gradients.inner_bias.copy_(bias)

    def _add_norm2(
        self, kept: Activations, following: Activations, primal: Block | None, tangent: Block | None
    ) -> None:
        w = self.weights
        if primal:
            a, n = kept.rows(*primal.rows), following.rows(*primal.rows)
            self.ops.layernorm_forward(
                a.output, w.outer_bias, a.y, w.norm2, w.shift2,
                self.config.layer_norm_eps, *self._hidden(primal, self.site2),
                out=n.x, low=n.x_low, mean=a.mean2, rstd=a.rstd2,
            )  # fmt: skip
        if tangent:
            a, t, n = (
                kept.rows(*tangent.rows),
                kept.rows(*tangent.behind),
                following.rows(*tangent.behind),
            )
            self.ops.layernorm_jvp(
                t.output, t.y, a.output, w.outer_bias, a.y, w.norm2, a.mean2, a.rstd2,
                *self._hidden(tangent, self.site2), out=n.x, low=n.x_low,
            )  # fmt: skip

    def _add_norm2_backward(
        self, kept: Activations, d: Cotangents, blocks: list[Block], gradients: LayerWeights | None
    ) -> None:
        w, found = self.weights, []
        for block in blocks:
            a, g = kept.rows(*block.rows), d.rows(*block.rows)
            found.append(
                self.ops.layernorm_backward(
                    g.hidden, g.product, a.output, w.outer_bias, a.y, w.norm2, a.mean2, a.rstd2,
                    *self._hidden(block, self.site2), gradients is not None,
                    hidden=g.hidden, low=g.narrow,
                )
            )  # fmt: skip
        if gradients:
            _put(found, gradients.outer_bias, gradients.norm2, gradients.shift2)

    def _heads(self, block: Block) -> tuple:
        """What attention takes after its tensors."""
        batch, config = block.stream.batch, self.config
        dropout = block.stream.attention(config.attention_probs_dropout_prob, self.attention_site)
        return batch.cu_seqlens, batch.max_length, config.num_attention_heads, *dropout

    def _hidden(self, block: Block, site: int) -> tuple:
        config = self.config
        return block.stream.hidden(config.hidden_size, config.hidden_dropout_prob, site)


def span_of(blocks: list[Block]) -> tuple[int, int]:
    """The rows of adjacent blocks."""
    return blocks[0].rows[0], blocks[-1].rows[1]


def _span(primal: Block | None, tangent: Block | None) -> tuple[int, int]:
    """The rows that go through the products."""
    first = primal.rows if primal else tangent.behind
    return first[0], (tangent.behind if tangent else first)[1]


def _put(found: list[tuple[Tensor, ...]], *buffers: Tensor) -> None:
    """Sums of the blocks' gradients."""
    for buffer, *parts in zip(buffers, *found, strict=True):
        buffer.copy_(parts[0] if len(parts) == 1 else sum(parts))
