"""What DistilBERT's modules do with an ``EncoderPass``; as before without one (see ``layers``)."""

from __future__ import annotations

from torch import Tensor

from sbrrt_fast.hf.layers import Fused, LayerKernels, gelu_of, packed_attention, why_no_gelu
from sbrrt_fast.hf.packing import EncoderPass
from sbrrt_fast.hf.plain import is_gelu, is_plain, is_plain_norm, product_and_bias
from sbrrt_fast.hf.residual import hidden_dropout, is_fusable, residual_norm


class BlockKernels(LayerKernels):
    """A layer that owns its LayerNorms."""

    _sbrrt_ops = ("dropout_add_layernorm",)

    def _packed(self, hidden: Tensor, encoder_pass: EncoderPass) -> Tensor:
        context, _ = self.attention(hidden, encoder_pass)
        attended = self._norm(self.sa_layer_norm, context, hidden)
        if not self._is_network_fusable():
            return self._norm(self.output_layer_norm, self.ffn(attended), attended)
        product, bias = self.ffn(attended, encoder_pass)
        dropout = hidden_dropout(encoder_pass, self.ffn.dropout, self._sbrrt_site)
        return residual_norm(
            product, bias, attended, self.output_layer_norm, dropout, self._sbrrt_backend
        )

    def _is_network_fusable(self) -> bool:
        """Whether nobody but this block sees what the network gives."""
        network = self.ffn
        if not (isinstance(network, NetworkKernels) and is_plain(network, type(network))):
            return False
        return is_gelu(network.activation) and is_fusable(network.dropout, self.output_layer_norm)

    def _norm(self, norm, x: Tensor, residual: Tensor) -> Tensor:
        """LN(residual + x), where x has its bias and its dropout."""
        if not is_plain_norm(norm):
            return norm(x + residual)
        return residual_norm(
            x, x.new_zeros(x.shape[-1]), residual, norm, backend=self._sbrrt_backend
        )


class DistilAttentionKernels(Fused):
    """Attention within each sequence of packed rows, and the dense layer behind it."""

    _sbrrt_ops = ("attention",)

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        if not isinstance(attention_mask, EncoderPass):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        matrices = (layer(hidden_states) for layer in (self.q_lin, self.k_lin, self.v_lin))
        p = self.dropout.p if self.training else 0.0
        site, backend = self._sbrrt_site, self._sbrrt_backend
        context = packed_attention(matrices, self.n_heads, p, attention_mask, site, backend)
        return self.out_lin(context), None


class NetworkKernels(Fused):
    """dropout(lin2(gelu(lin1(x)))); with a pass (lin2's product, its bias), for the block to drop.

    In the place of ``FFN``.
    """

    _sbrrt_ops = ("bias_gelu",)

    @classmethod
    def _sbrrt_why_not(cls, module):
        return why_no_gelu(module.activation)

    def forward(self, input, encoder_pass=None):
        if encoder_pass is None:
            return super().forward(input)
        hidden = gelu_of(self.lin1, input, self._sbrrt_backend)
        return product_and_bias(self.lin2, hidden)
