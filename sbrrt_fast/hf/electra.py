"""ELECTRA's modules with the fused ops, under transformers' names, which FSDP goes by."""

from __future__ import annotations

from transformers.models.electra import modeling_electra as stock

from sbrrt_fast.hf.embeddings import BertEmbeddingsKernels
from sbrrt_fast.hf.layers import (
    AttentionKernels,
    EncoderKernels,
    IntermediateKernels,
    LayerKernels,
    OutputKernels,
    SelfAttentionKernels,
)


class ElectraEmbeddings(BertEmbeddingsKernels, stock.ElectraEmbeddings):
    pass


class ElectraSelfAttention(SelfAttentionKernels, stock.ElectraSelfAttention):
    pass


class ElectraSelfOutput(OutputKernels, stock.ElectraSelfOutput):
    pass


class ElectraAttention(AttentionKernels, stock.ElectraAttention):
    pass


class ElectraIntermediate(IntermediateKernels, stock.ElectraIntermediate):
    pass


class ElectraOutput(OutputKernels, stock.ElectraOutput):
    pass


class ElectraLayer(LayerKernels, stock.ElectraLayer):
    pass


class ElectraEncoder(EncoderKernels, stock.ElectraEncoder):
    pass


MODEL = stock.ElectraModel
FUSED = {
    stock.ElectraEmbeddings: ElectraEmbeddings,
    stock.ElectraSelfAttention: ElectraSelfAttention,
    stock.ElectraSelfOutput: ElectraSelfOutput,
    stock.ElectraAttention: ElectraAttention,
    stock.ElectraIntermediate: ElectraIntermediate,
    stock.ElectraOutput: ElectraOutput,
    stock.ElectraLayer: ElectraLayer,
    stock.ElectraEncoder: ElectraEncoder,
}
