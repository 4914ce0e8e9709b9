"""What BERT's, RoBERTa's and ELECTRA's modules do with an ``EncoderPass``; as before without one.

Each class here comes before one of transformers' among the bases of a class in ``hf.bert``,
``hf.roberta`` and ``hf.electra``; modules of a model get those classes in their own one's place.
"""

from __future__ import annotations

from torch import Tensor, nn

from sbrrt_fast.hf.packing import EncoderPass
from sbrrt_fast.hf.plain import is_gelu, is_traced, product_and_bias
from sbrrt_fast.hf.residual import hidden_dropout, is_fusable, residual_norm
from sbrrt_fast.ops.attention import attention
from sbrrt_fast.ops.gelu import bias_gelu

PACKING = "_sbrrt_packing"
"""The attribute in which an encoder finds the packing of the call that is under way."""


class Fused:
    """What all taken modules have.

    Attributes:
        _sbrrt_ops: what it runs. _sbrrt_site: the number of its dropout.
        _sbrrt_backend: whose ops it calls.
    """

    _sbrrt_ops: tuple[str, ...] = ("packed rows",)
    _sbrrt_site = 0
    _sbrrt_backend = "auto"

    @classmethod
    def _sbrrt_why_not(cls, module: nn.Module) -> str:
        """Why a module of the right class is left alone while others are taken, or nothing."""
        return ""

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), "kernels=sbrrt_fast"]))


class EncoderKernels(Fused):
    """The stack of layers, on packed rows; padded hidden states in and out."""

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        asked = self.__dict__.pop(PACKING, None)
        if asked is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        packing, is_padded_between = asked
        encoder_pass = EncoderPass(packing, hidden_states.shape[-1], is_padded_between)
        if is_padded_between:
            return super().forward(hidden_states, encoder_pass, *args, **kwargs)
        packed = packing.pack(hidden_states)
        outputs = super().forward(packed, encoder_pass, *args, **kwargs)
        outputs.last_hidden_state = packing.unpack(outputs.last_hidden_state)
        return outputs


class LayerKernels(Fused):
    """Attention, then the feed-forward network, each with its residual connection."""

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        if not isinstance(attention_mask, EncoderPass):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        if not attention_mask.is_padded_between:
            return self._packed(hidden_states, attention_mask)
        packing = attention_mask.packing
        return packing.unpack(self._packed(packing.pack(hidden_states), attention_mask))

    def _packed(self, hidden: Tensor, encoder_pass: EncoderPass) -> Tensor:
        attended, _ = self.attention(hidden, encoder_pass)
        return output_of(self.output, self.intermediate(attended), attended, encoder_pass)


class AttentionKernels(Fused):
    """Self-attention and its residual connection."""

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        if not isinstance(attention_mask, EncoderPass):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        context, _ = self.self(hidden_states, attention_mask)
        return output_of(self.output, context, hidden_states, attention_mask), None


class SelfAttentionKernels(Fused):
    """Attention within each sequence of packed rows."""

    _sbrrt_ops = ("attention",)

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        if not isinstance(attention_mask, EncoderPass):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        matrices = (layer(hidden_states) for layer in (self.query, self.key, self.value))
        p = self.dropout.p if self.training else 0.0
        heads = self.num_attention_heads
        site, backend = self._sbrrt_site, self._sbrrt_backend
        return packed_attention(matrices, heads, p, attention_mask, site, backend), None


class OutputKernels(Fused):
    """LN(residual + dropout(dense(x)))."""

    _sbrrt_ops = ("dropout_add_layernorm",)

    def forward(self, hidden_states, input_tensor, encoder_pass=None):
        if encoder_pass is None or not is_fusable(self.dropout, self.LayerNorm):
            return super().forward(hidden_states, input_tensor)
        product, bias = product_and_bias(self.dense, hidden_states)
        dropout = hidden_dropout(encoder_pass, self.dropout, self._sbrrt_site)
        return residual_norm(
            product, bias, input_tensor, self.LayerNorm, dropout, self._sbrrt_backend
        )


class IntermediateKernels(Fused):
    """gelu(dense(x)), of rows [..., hidden]."""

    _sbrrt_ops = ("bias_gelu",)

    @classmethod
    def _sbrrt_why_not(cls, module):
        return why_no_gelu(module.intermediate_act_fn)

    def forward(self, hidden_states):
        if is_traced() or not is_gelu(self.intermediate_act_fn):
            return super().forward(hidden_states)
        return gelu_of(self.dense, hidden_states, self._sbrrt_backend)


def packed_attention(
    matrices, num_heads: int, p: float, encoder_pass: EncoderPass, site: int, backend: str
) -> Tensor:
    """Attention [num_tokens, num_heads * head_dim] of query, key and value of that shape."""
    packing = encoder_pass.packing
    dropout = encoder_pass.attention(p, site)
    batch = packing.cu_seqlens, packing.max_length, num_heads
    return attention(*matrices, *batch, *dropout, backend=backend)


def why_no_gelu(activation: object) -> str:
    """Why ``gelu_of`` does not compute an activation, or nothing."""
    if is_gelu(activation):
        return ""
    name = getattr(activation, "__name__", type(activation).__name__)
    return f"its activation is {name}, not gelu by the error function"


def gelu_of(dense: nn.Module, x: Tensor, backend: str) -> Tensor:
    """gelu(dense(x)) of rows [..., hidden]."""
    product, bias = product_and_bias(dense, x)
    out = bias_gelu(product.reshape(-1, product.shape[-1]), bias, backend=backend)
    return out.view(product.shape)


def output_of(module: nn.Module, x: Tensor, residual: Tensor, encoder_pass: EncoderPass) -> Tensor:
    """A residual block's output; one that was replaced after the others were taken is called."""
    if isinstance(module, OutputKernels):
        return module(x, residual, encoder_pass)
    return module(x, residual)
