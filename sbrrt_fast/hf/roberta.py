"""RoBERTa's modules with the fused ops, under transformers' names, which FSDP goes by."""

from __future__ import annotations

from transformers.models.roberta import modeling_roberta as stock

from sbrrt_fast.hf.embeddings import RobertaEmbeddingsKernels
from sbrrt_fast.hf.layers import (
    AttentionKernels,
    EncoderKernels,
    IntermediateKernels,
    LayerKernels,
    OutputKernels,
    SelfAttentionKernels,
)


class RobertaEmbeddings(RobertaEmbeddingsKernels, stock.RobertaEmbeddings):
    pass


class RobertaSelfAttention(SelfAttentionKernels, stock.RobertaSelfAttention):
    pass


class RobertaSelfOutput(OutputKernels, stock.RobertaSelfOutput):
    pass


class RobertaAttention(AttentionKernels, stock.RobertaAttention):
    pass


class RobertaIntermediate(IntermediateKernels, stock.RobertaIntermediate):
    pass


class RobertaOutput(OutputKernels, stock.RobertaOutput):
    pass


class RobertaLayer(LayerKernels, stock.RobertaLayer):
    pass


class RobertaEncoder(EncoderKernels, stock.RobertaEncoder):
    pass


MODEL = stock.RobertaModel
FUSED = {
    stock.RobertaEmbeddings: RobertaEmbeddings,
    stock.RobertaSelfAttention: RobertaSelfAttention,
    stock.RobertaSelfOutput: RobertaSelfOutput,
    stock.RobertaAttention: RobertaAttention,
    stock.RobertaIntermediate: RobertaIntermediate,
    stock.RobertaOutput: RobertaOutput,
    stock.RobertaLayer: RobertaLayer,
    stock.RobertaEncoder: RobertaEncoder,
}
