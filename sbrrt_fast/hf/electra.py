"""ELECTRA's modules with the fused ops."""

from __future__ import annotations

from transformers.models.electra import modeling_electra as stock

from sbrrt_fast.hf.classes import bert_like, fused_classes
from sbrrt_fast.hf.embeddings import BertEmbeddingsKernels

MODEL = stock.ElectraModel
FUSED = fused_classes(stock, bert_like("Electra", BertEmbeddingsKernels), __name__)
globals().update({kind.__name__: kind for kind in FUSED.values()})
