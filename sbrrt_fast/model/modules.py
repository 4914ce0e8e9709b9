"""sentence-transformers' ``modules.json``: the layers of a checkpoint between tokens and a vector.

What MiniBert has are an encoder, pooling, and a tanh layer behind [CLS]. Everything else that a
checkpoint names is either left out knowingly, which ``SentenceModules.summary`` says, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.json_file import as_json, kind_of, read_json
from sbrrt_fast.model.families import has_pooler
from sbrrt_fast.model.pooling import POOLINGS
from sbrrt_fast.model.tensors import readable

MODULES = "modules.json"
POOLING_FOLDER, DENSE_FOLDER = "1_Pooling", "2_Dense"

_OVERRIDE = f"set model.pooling to {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]} to pool that way"
_LEFT_OUT = {
    "Normalize": "heads take sentence vectors of any length, and a cosine does not depend on it",
    "Dropout": "dropout is the run's own",
}
_MODES = {"pooling_mode_cls_token": "cls_token", "pooling_mode_mean_tokens": "mean"}
_SHORT_MODES = {"cls": "cls_token", "mean": "mean"}


@dataclass(frozen=True)
class SentenceModules:
    """The layers that a checkpoint has between tokens and a vector, as far as MiniBert has them.

    Attributes:
        encoder: folder of ``config.json``, weights and tokenizer.
        pooling: one of ``POOLINGS``.
        dense: folder of the tanh layer that ``cls`` has instead of BERT's own pooler, or None.
        summary: one line for the user.
    """

    encoder: Path
    pooling: str
    dense: Path | None = None
    summary: str = ""


@dataclass(frozen=True)
class _Module:
    """One entry of ``modules.json``: the last part of its type, its folder and its name there."""

    kind: str
    folder: Path
    path: str

    def __str__(self) -> str:
        return f"{readable(self.path or '.')} ({readable(self.kind or '?')})"


def read_modules(directory: str | Path, pooling: str = "checkpoint") -> SentenceModules:
    """How a checkpoint makes a sentence vector: ``modules.json``, whatever its folders are called.

    Without that file ``1_Pooling/config.json`` says it, and without either it is ``cls``, BERT's
    own pooler, or ``mean`` of a model that has none. Both spellings of
    sentence-transformers are read: ``"pooling_mode": "mean"`` and
    ``"pooling_mode_mean_tokens": true``.

    Args:
        pooling: one of ``POOLINGS`` to pool that way whatever the checkpoint says.

    Raises:
        WeightsError: a file is malformed or missing, or the checkpoint has layers that MiniBert has
            not and ``pooling`` is ``checkpoint``.
    """
    directory = Path(directory)
    path = directory / MODULES
    if not path.is_file():
        return _without_list(directory, pooling)
    modules = list_modules(path)
    if not modules or modules[0].kind != "Transformer":
        first = modules[0] if modules else "nothing"
        raise WeightsError(
            f"{path}: starts with {first}; only an encoder (Transformer) can be used"
        )
    encoder, rest = modules[0].folder, modules[1:]
    if pooling == "checkpoint":
        return _as_listed(path, encoder, rest)
    return _as_chosen(path, encoder, rest, pooling)


def list_modules(path: Path) -> list[_Module]:
    """The entries of a ``modules.json`` in their order; WeightsError if it is malformed."""
    return [_module(path, i, entry) for i, entry in enumerate(read_json(path, list))]


def _module(path: Path, index: int, entry: Any) -> _Module:
    entry = entry if isinstance(entry, dict) else {}
    kind, folder = entry.get("type"), entry.get("path")
    if not isinstance(kind, str) or not isinstance(folder, str):
        raise WeightsError(
            f"{path}: module {index} has no type and path, both strings; download or save it again"
        )
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        raise WeightsError(f"{path}: module {index} lies outside the folder ({as_json(folder)})")
    return _Module(kind.rpartition(".")[2], path.parent / folder, folder)


def _without_list(directory: Path, pooling: str) -> SentenceModules:
    settings = directory / POOLING_FOLDER / "config.json"
    if pooling != "checkpoint":
        return SentenceModules(directory, pooling, None, f"pooling '{pooling}' (model.pooling)")
    if not settings.is_file() and not has_pooler(directory / "config.json"):
        return SentenceModules(directory, "mean", None, "pooling 'mean' (it has no pooler)")
    if not settings.is_file():
        return SentenceModules(directory, "cls", None, "pooling 'cls' (BERT's own pooler)")
    pooling = _read_pooling(settings)
    return SentenceModules(directory, pooling, None, f"pooling '{pooling}' ({POOLING_FOLDER})")


def _as_chosen(path: Path, encoder: Path, modules: list[_Module], pooling: str) -> SentenceModules:
    """``model.pooling`` whatever follows; ``cls`` is the checkpoint's layer where it has one."""
    dense = None
    if pooling == "cls":
        with suppress(WeightsError):  # for layers that are left out
            dense = _as_listed(path, encoder, modules).dense
    others = [str(m) for m in modules if dense is None or m.kind not in ("Pooling", "Dense")]
    summary = f"pooling '{pooling}' (model.pooling)" + _left_out(others)
    return SentenceModules(encoder, pooling, dense, summary)


def _as_listed(path: Path, encoder: Path, modules: list[_Module]) -> SentenceModules:
    """The modules after the encoder in ``modules.json``, each taken or named as left out."""
    if not modules or modules[0].kind != "Pooling":
        what = f"{modules[0]} after the encoder" if modules else "no pooling"
        raise WeightsError(f"{path}: has {what}, which is not supported; {_OVERRIDE}")
    first, rest = modules[0], modules[1:]
    pooling, dense = _read_pooling(_settings(path, first)), None
    taken = str(first)
    if rest and rest[0].kind == "Dense":
        dense_module, rest = rest[0], rest[1:]
        if reason := _why_no_tanh(path, pooling, dense_module):
            raise WeightsError(f"{path}: {dense_module} {reason}; {_OVERRIDE} without this layer")
        pooling, dense, taken = "cls", dense_module.folder, f"{taken}, {dense_module}"
    for module in rest:
        if module.kind not in _LEFT_OUT:
            raise WeightsError(
                f"{path}: {module} after {first} is not supported; {_OVERRIDE} without this layer"
            )
    others = [f"{module}, since {_LEFT_OUT[module.kind]}" for module in rest]
    summary = f"pooling '{pooling}' from {taken}" + _left_out(others)
    return SentenceModules(encoder, pooling, dense, summary)


def _left_out(names: list[str]) -> str:
    return f"; left out: {'; '.join(names)}" if names else ""


def _settings(path: Path, module: _Module) -> Path:
    settings = module.folder / "config.json"
    if not settings.is_file():
        raise WeightsError(
            f"{path} names {module}, but {settings} is missing; download or save it again"
        )
    return settings


def _why_no_tanh(path: Path, pooling: str, dense: _Module) -> str | None:
    """Why a dense layer is not the tanh pooler, or None."""
    stored = read_json(_settings(path, dense))
    activation = stored.get("activation_function")
    sizes = stored.get("in_features"), stored.get("out_features")
    if pooling != "cls_token":
        return f"follows pooling '{pooling}', and only one behind [CLS] is supported"
    if not isinstance(activation, str) or activation.rpartition(".")[2] != "Tanh":
        return f"has activation_function {as_json(activation)}, and only Tanh is supported"
    if type(sizes[0]) is not int or sizes[0] != sizes[1]:
        return f"maps {as_json(sizes[0])} to {as_json(sizes[1])} features, not to as many"
    if stored.get("bias", True) is not True:
        return "has no bias, and only a layer with one is supported"
    if stored.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        return f"works on {as_json(stored['module_input_name'])}, not on the sentence vector"
    return None


def _read_pooling(path: Path) -> str:
    """``cls_token`` or ``mean``, from the settings of a pooling module."""
    modes = list(dict.fromkeys(_pooling_modes(path, read_json(path))))
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise WeightsError(
            f"{path}: pooling {' + '.join(modes) or 'is not named'}; only that of [CLS] or the "
            f"mean is supported: {_OVERRIDE}"
        )
    return modes[0]


def _pooling_modes(path: Path, stored: dict[str, Any]) -> Iterator[str]:
    if "pooling_mode" in stored:
        modes = stored["pooling_mode"]
        for mode in modes if isinstance(modes, list) else [modes]:
            yield _SHORT_MODES[mode] if mode in ("cls", "mean") else as_json(mode)
    for key, value in stored.items():
        if not key.startswith("pooling_mode_"):
            continue
        if not isinstance(value, bool):
            raise WeightsError(
                f"{path}: {as_json(key)} must be true or false, got {kind_of(value)}"
            )
        if value:
            yield _MODES.get(key) or as_json(key)
