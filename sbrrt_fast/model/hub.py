"""Hugging Face BertModel folders in and out: weights as safetensors, with their tokenizer."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from torch import Tensor, nn

from sbrrt_fast.data.tokenizer import SENTENCE, load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.files import atomic_directory, make_folder, write_json, write_text
from sbrrt_fast.json_file import as_json, read_json
from sbrrt_fast.model.backbone import TOKENIZER_FILES
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.modules import (
    DENSE_FOLDER,
    MODULES,
    POOLING_FOLDER,
    SentenceModules,
)
from sbrrt_fast.model.tensors import (
    WEIGHTS,
    TensorReader,
    encoder_name,
    readable,
    weight_files,
    write_tensors,
)

_POOLER = "pooler.dense."
_STORED_POOLER = re.compile(r"(?:.*\.)?pooler\.(?:dense\.)?(weight|bias)")
_SIMILARITY = "config_sentence_transformers.json"
_WRITTEN = {
    *("config.json", WEIGHTS, MODULES, POOLING_FOLDER, DENSE_FOLDER, SENTENCE, _SIMILARITY),
    *TOKENIZER_FILES,
}
_BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")
}


def save_encoder(
    model: nn.Module, directory: str | Path, tokenizer: Tokenizer | str | Path | Any | None = None
) -> None:
    """Writes a folder that transformers' BertModel and AutoTokenizer, sentence-transformers and
    ``MiniBert.from_folder`` read.

    The folder is written beside its place and renamed, so that it is never half written; a folder
    that is already there is replaced, and is absent only between two renames. For
    sentence-transformers, the tanh pooler of ``cls`` is written once more as a Dense module.

    Args:
        model: a ``MiniBert``.
        tokenizer: a ``tokenizers.Tokenizer``, anything with ``save_pretrained``, or a folder
            whose tokenizer files are copied; if None, those of the folder that the encoder came
            from (``model.source``), if any.

    Raises:
        WeightsError: ``directory`` exists and holds other files, which replacing would delete.
        OutputError: it cannot be written; what was there before is unchanged.
    """
    directory = Path(directory).resolve()
    _check_replaceable(directory)
    make_folder(directory.parent)
    with atomic_directory(directory) as folder:
        write_encoder(model, folder, tokenizer)


def write_encoder(
    model: nn.Module, folder: Path, tokenizer: Any, max_length: int | None = None
) -> None:
    """``save_encoder`` into an empty folder; for ``max_length`` see ``write_description``."""
    write_tensors(model.stored_tensors(), folder / WEIGHTS, {"format": "pt"})
    write_description(model, folder, tokenizer, max_length)


def write_description(
    model: nn.Module, folder: Path, tokenizer: Any, max_length: int | None = None
) -> None:
    """All of an encoder's folder but its weights: shape, tokenizer, and what follows the encoder.

    Args:
        tokenizer: see ``save_encoder``.
        max_length: tokens after which sentence-transformers cuts a text; as many as the encoder has
            positions if None, and never more.
    """
    _write_config(model, folder)
    _write_modules(model, folder)
    _write_sentence_settings(model, folder, max_length)
    _write_tokenizer(model, folder, tokenizer)


def read_max_length(folder: Path) -> int | None:
    """The ``max_length`` that ``write_description`` was given; None where no file says it.

    Raises:
        WeightsError: the file is malformed.
    """
    path = folder / SENTENCE
    longest = read_json(path).get("max_seq_length") if path.is_file() else None
    if longest is not None and (type(longest) is not int or longest < 1):
        raise WeightsError(
            f"{path}: max_seq_length must be a whole number of at least 1, got {as_json(longest)}"
        )
    return longest


def read_weights(modules: SentenceModules, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """An encoder's tensors, float32 on the CPU, from one safetensors file or several.

    Prefixes that wrappers leave (``bert.``, ``module.``, ``0.auto_model.``, see
    ``tensors.encoder_name``) and TensorFlow's LayerNorm names (``gamma``, ``beta``) are understood;
    heads are left out.

    Args:
        modules: the checkpoint's layers. shapes: of the tensors, by name.

    Raises:
        WeightsError: the weights are pickled, truncated, or do not fit ``config.json``; it lists
            those that are missing or do not fit.
    """
    pooler = {name: shape for name, shape in shapes.items() if name.startswith(_POOLER)}
    own_shapes = {n: s for n, s in shapes.items() if not (modules.dense and n in pooler)}
    reader = TensorReader(own_shapes, lambda stored: _name_of(stored, own_shapes))
    for path in weight_files(modules.encoder):
        reader.read(path)
    _check_any_fits(modules.encoder, reader)
    if not reader.problems and pooler and reader.missing() == list(pooler):
        raise WeightsError(_no_pooler(modules.encoder))
    where = f"{modules.encoder}: the weights do not fit config.json"
    tensors = reader.finish(where, "use the config.json that was saved with these weights")
    if not modules.dense:
        return tensors
    names = {name.removeprefix(_POOLER): shape for name, shape in pooler.items()}
    return tensors | {_POOLER + n: x for n, x in _read_dense(modules.dense, names).items()}


def read_pooler(modules: SentenceModules, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The tanh layer of ``cls``, ``weight`` and ``bias``, of whatever encoder: float32 on the CPU.

    Args:
        modules: the checkpoint's layers. shapes: of the two, by name.

    Raises:
        WeightsError: the checkpoint has none, or it does not fit.
    """
    if modules.dense:
        return _read_dense(modules.dense, shapes)
    reader = TensorReader(
        shapes, lambda stored: (_STORED_POOLER.fullmatch(stored) or [None] * 2)[1]
    )
    for path in weight_files(modules.encoder, "AutoModel"):
        reader.read(path)
    if not reader.problems and reader.missing():
        raise WeightsError(_no_pooler(modules.encoder))
    return reader.finish(f"{modules.encoder}: the pooler does not fit", "save it again")


def _no_pooler(folder: Path) -> str:
    return (
        f"{folder}: the checkpoint was saved without a pooler, which pooling 'cls' needs; use "
        "pooling 'mean' or 'cls_token' (model.pooling)"
    )


def _name_of(stored: str, shapes: dict[str, list[int]]) -> str | None:
    """The encoder's name of a stored tensor; None for heads and a pooler that is not read."""
    name = encoder_name(stored)
    return None if name and name.startswith("pooler.") and name not in shapes else name


def _check_any_fits(folder: Path, reader: TensorReader) -> None:
    """A file without any of the encoder's tensors is of something else, or named otherwise."""
    if reader.tensors or reader.problems:
        return
    names = ", ".join(readable(name) for name in reader.stored[:3])
    raise WeightsError(
        f"{folder}: none of the {reader.num_stored} stored tensors has a name of BertModel "
        f"({names or 'there are none'}); rename them to embeddings.*, encoder.layer.* and "
        "pooler.*, with or without a prefix such as bert."
    )


def _read_dense(folder: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """``weight`` and ``bias`` from a Dense module of sentence-transformers."""
    reader = TensorReader(shapes, lambda stored: stored.removeprefix("linear."))
    for path in weight_files(folder, "Dense"):
        reader.read(path)
    return reader.finish(f"{folder}: the layer does not fit config.json", "save it again")


def _check_replaceable(directory: Path) -> None:
    if directory.is_file():
        raise WeightsError(f"{directory} is a file; give a folder to save the encoder in")
    others = sorted({p.name for p in directory.iterdir()} - _WRITTEN) if directory.is_dir() else []
    if others:
        raise WeightsError(
            f"{directory} holds other files ({', '.join(others[:3])}), which saving an encoder "
            "there would delete; give a new folder"
        )


def _write_config(model: nn.Module, folder: Path) -> None:
    write_json(folder / "config.json", model.config.to_dict())


def _write_modules(model: nn.Module, folder: Path) -> None:
    """sentence-transformers' list of modules, their settings, and the pooler's weights."""
    pooling, width = model.pooling, model.config.hidden_size
    paths = {"Transformer": "", "Pooling": POOLING_FOLDER}
    settings = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling != "mean",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (folder / POOLING_FOLDER).mkdir()
    write_json(folder / POOLING_FOLDER / "config.json", settings)
    if pooling == "cls":
        paths["Dense"] = DENSE_FOLDER
        settings = {"in_features": width, "out_features": width, "bias": True}
        settings["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / DENSE_FOLDER).mkdir()
        write_json(folder / DENSE_FOLDER / "config.json", settings)
        weights = {f"linear.{name}": x for name, x in model.pooler_tensors().items()}
        write_tensors(weights, folder / DENSE_FOLDER / WEIGHTS, {"format": "pt"})
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    write_json(folder / MODULES, modules)


def _write_sentence_settings(model: nn.Module, folder: Path, max_length: int | None) -> None:
    """How sentence-transformers cuts texts and compares vectors."""
    positions = model.config.max_position_embeddings
    longest = positions if max_length is None else min(max_length, positions)
    write_json(folder / SENTENCE, {"max_seq_length": longest, "do_lower_case": False})
    settings = {"similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None}
    write_json(folder / _SIMILARITY, settings)


def _write_tokenizer(model: nn.Module, folder: Path, tokenizer: Any) -> None:
    if tokenizer is None:
        tokenizer = getattr(model, "source", None)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(str(folder / "tokenizer.json"))
        if isinstance(tokenizer.model, WordPiece):
            _write_vocabulary(tokenizer, folder / "vocab.txt")
        _write_tokenizer_config(tokenizer, model.config, folder)
    elif isinstance(tokenizer, str | Path):
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, folder / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """vocab.txt: one token per line, its id is the line's number; only if it reads back equal."""
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    has_gaps = sorted(vocabulary) != list(range(len(vocabulary)))
    if has_gaps or any(t != t.strip() or "\n" in t for t in vocabulary.values()):
        return
    lines = "".join(f"{vocabulary[i]}\n" for i in range(len(vocabulary)))
    write_text(path, lines)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens of each role: BERT's, or else RoBERTa's, as far as the tokenizer has them.

    What it puts around a text is the first token's and the separator's.
    """
    special = {}
    for key, token in _BERT_TOKENS.items():
        for name in (token, f"<{key.removesuffix('_token')}>"):
            if tokenizer.token_to_id(name) is not None:
                special.setdefault(key, name)
    ends = tokenizer.encode("").tokens
    if len(ends) == 2:
        special["cls_token"], special["sep_token"] = ends
    return special


def _write_tokenizer_config(tokenizer: Tokenizer, config: BertConfig, folder: Path) -> None:
    """tokenizer_config.json, for BertTokenizer where the tokenizer is one."""
    special, inputs = _special_tokens(tokenizer), ["input_ids", "attention_mask"]
    if config.type_vocab_size > 1:
        inputs.append("token_type_ids")
    length = config.max_position_embeddings
    settings = {**special, "model_max_length": length, "model_input_names": inputs}
    path, normalizer = folder / "tokenizer_config.json", tokenizer.normalizer
    if isinstance(normalizer, BertNormalizer) and special == _BERT_TOKENS:
        names = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        }
        write_json(path, settings | names)
        with suppress(WeightsError):
            load_tokenizer(folder)
            return
    write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
