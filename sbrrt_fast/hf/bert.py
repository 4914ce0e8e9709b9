"""BERT's modules with the fused ops, under transformers' names, which FSDP goes by."""

from __future__ import annotations

from transformers.models.bert import modeling_bert as stock

from sbrrt_fast.hf.embeddings import BertEmbeddingsKernels
from sbrrt_fast.hf.layers import (
    AttentionKernels,
    EncoderKernels,
    IntermediateKernels,
    LayerKernels,
    OutputKernels,
    SelfAttentionKernels,
)


class BertEmbeddings(BertEmbeddingsKernels, stock.BertEmbeddings):
    pass


class BertSelfAttention(SelfAttentionKernels, stock.BertSelfAttention):
    pass


class BertSelfOutput(OutputKernels, stock.BertSelfOutput):
    pass


class BertAttention(AttentionKernels, stock.BertAttention):
    pass


class BertIntermediate(IntermediateKernels, stock.BertIntermediate):
    pass


class BertOutput(OutputKernels, stock.BertOutput):
    pass


class BertLayer(LayerKernels, stock.BertLayer):
    pass


class BertEncoder(EncoderKernels, stock.BertEncoder):
    pass


MODEL = stock.BertModel
FUSED = {
    stock.BertEmbeddings: BertEmbeddings,
    stock.BertSelfAttention: BertSelfAttention,
    stock.BertSelfOutput: BertSelfOutput,
    stock.BertAttention: BertAttention,
    stock.BertIntermediate: BertIntermediate,
    stock.BertOutput: BertOutput,
    stock.BertLayer: BertLayer,
    stock.BertEncoder: BertEncoder,
}
