"""DistilBERT's modules with the fused ops."""

from __future__ import annotations

from transformers.models.distilbert import modeling_distilbert as stock

from sbrrt_fast.hf.classes import fused_classes
from sbrrt_fast.hf.distilbert_layers import BlockKernels, DistilAttentionKernels, NetworkKernels
from sbrrt_fast.hf.embeddings import DistilBertEmbeddingsKernels
from sbrrt_fast.hf.layers import EncoderKernels

_KERNELS = {
    "Embeddings": DistilBertEmbeddingsKernels,
    "DistilBertSelfAttention": DistilAttentionKernels,
    "FFN": NetworkKernels,
    "TransformerBlock": BlockKernels,
    "Transformer": EncoderKernels,
}

MODEL = stock.DistilBertModel
FUSED = fused_classes(stock, _KERNELS, __name__)
globals().update({kind.__name__: kind for kind in FUSED.values()})
