"""BERT's modules with the fused ops."""

from __future__ import annotations

from transformers.models.bert import modeling_bert as stock

from sbrrt_fast.hf.classes import bert_like, fused_classes
from sbrrt_fast.hf.embeddings import BertEmbeddingsKernels

MODEL = stock.BertModel
FUSED = fused_classes(stock, bert_like("Bert", BertEmbeddingsKernels), __name__)
globals().update({kind.__name__: kind for kind in FUSED.values()})
