"""Small random models of transformers' families, saved with small tokenizers as they save them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from tests.helpers import sample_words, tiny_tokenizer

SENTENCE_ENDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@functools.cache
def byte_level_tokenizer() -> Tokenizer:
    """RoBERTa's: byte-level BPE between <s> and </s>, two separators between texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SENTENCE_ENDS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(sample_words())], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


@functools.cache
def unigram_tokenizer() -> Tokenizer:
    """XLM-R's: Unigram over marked words, two separators between texts."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SENTENCE_ENDS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(sample_words())], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def saved_tokenizer(folder: Path, tokenizer: Tokenizer, name: str) -> None:
    """As transformers saves it under the name of one of its classes."""
    is_bert = tokenizer.token_to_id("[CLS]") is not None
    roles = ("cls", "sep", "pad", "unk", "mask")
    tokens = dict(zip(roles, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))
    if is_bert:
        tokens = {role: f"[{role.upper()}]" for role in roles}
    special = {f"{role}_token": token for role, token in tokens.items()}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(type(fast).__name__, name), encoding="utf-8")


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "initializer_range": 0.1,
}
SHAPE = {**SIZES, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ROBERTA = {**SHAPE, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
BERT = {**SHAPE, "max_position_embeddings": 64}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 1,
    "hidden_dim": 64,
    "max_position_embeddings": 64,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.1,
}
DEBERTA = {
    **BERT,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
MODERNBERT = {
    **SIZES,
    "max_position_embeddings": 64,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "embedding_dropout": 0.1,
    "mlp_dropout": 0.1,
    "attention_dropout": 0.1,
}

# name -> configuration, its settings, tokenizer, and the name of the tokenizer's class.
FAMILIES = {
    "roberta": ("RobertaConfig", ROBERTA, byte_level_tokenizer, "RobertaTokenizer"),
    "xlm-roberta": ("XLMRobertaConfig", ROBERTA, unigram_tokenizer, "PreTrainedTokenizerFast"),
    "camembert": ("CamembertConfig", ROBERTA, unigram_tokenizer, "PreTrainedTokenizerFast"),
    "data2vec-text": ("Data2VecTextConfig", ROBERTA, byte_level_tokenizer, "RobertaTokenizer"),
    "electra": ("ElectraConfig", {**BERT, "embedding_size": 32}, tiny_tokenizer, "BertTokenizer"),
}
BERT_LIKE = tuple(FAMILIES)
FAMILIES |= {
    "mpnet": ("MPNetConfig", ROBERTA, byte_level_tokenizer, "PreTrainedTokenizerFast"),
    "distilbert": ("DistilBertConfig", DISTILBERT, tiny_tokenizer, "DistilBertTokenizer"),
    "electra, projected": (
        "ElectraConfig", {**BERT, "embedding_size": 16}, tiny_tokenizer, "BertTokenizer"
    ),
    "albert": ("AlbertConfig", {**BERT, "embedding_size": 16}, tiny_tokenizer, "BertTokenizer"),
    "deberta-v2": ("DebertaV2Config", DEBERTA, tiny_tokenizer, "PreTrainedTokenizerFast"),
    "modernbert": ("ModernBertConfig", MODERNBERT, tiny_tokenizer, "PreTrainedTokenizerFast"),
}  # fmt: skip
OTHERS = tuple(name for name in FAMILIES if name not in BERT_LIKE)


def stock_model(family: str, head: str = "", **changes) -> nn.Module:
    """A model of transformers with random weights, biases too, in ``eval()``.

    Args:
        head: of a class such as ``ForMaskedLM``; the bare model if empty.
        changes: of its configuration.
    """
    config_name, settings, tokenizer, _ = FAMILIES[family]
    kind = getattr(transformers, config_name.replace("Config", head or "Model"))
    settings = {"vocab_size": tokenizer().get_vocab_size(), **settings, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(getattr(transformers, config_name)(**settings))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return model.eval()


def stock_backbone(folder: Path, family: str, head: str = "", **changes) -> Path:
    """The folder of ``stock_model`` with its tokenizer, as transformers saves them."""
    stock_model(family, head, **changes).save_pretrained(folder)
    _, _, tokenizer, name = FAMILIES[family]
    saved_tokenizer(folder, tokenizer(), name)
    return folder
