"""RoBERTa's modules with the fused ops."""

from __future__ import annotations

from transformers.models.roberta import modeling_roberta as stock

from sbrrt_fast.hf.classes import bert_like, fused_classes
from sbrrt_fast.hf.embeddings import RobertaEmbeddingsKernels

MODEL = stock.RobertaModel
FUSED = fused_classes(stock, bert_like("Roberta", RobertaEmbeddingsKernels), __name__)
globals().update({kind.__name__: kind for kind in FUSED.values()})
