"""DistilBERT's modules with the fused ops, under transformers' names, which FSDP goes by."""

from __future__ import annotations

from transformers.models.distilbert import modeling_distilbert as stock

from sbrrt_fast.hf.distilbert_layers import BlockKernels, DistilAttentionKernels, NetworkKernels
from sbrrt_fast.hf.embeddings import DistilBertEmbeddingsKernels
from sbrrt_fast.hf.layers import EncoderKernels


class Embeddings(DistilBertEmbeddingsKernels, stock.Embeddings):
    pass


class DistilBertSelfAttention(DistilAttentionKernels, stock.DistilBertSelfAttention):
    pass


class FFN(NetworkKernels, stock.FFN):
    pass


class TransformerBlock(BlockKernels, stock.TransformerBlock):
    pass


class Transformer(EncoderKernels, stock.Transformer):
    pass


MODEL = stock.DistilBertModel
FUSED = {
    stock.Embeddings: Embeddings,
    stock.DistilBertSelfAttention: DistilBertSelfAttention,
    stock.FFN: FFN,
    stock.TransformerBlock: TransformerBlock,
    stock.Transformer: Transformer,
}
