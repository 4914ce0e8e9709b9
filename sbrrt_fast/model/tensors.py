"""Safetensors files whose tensors are known by name and shape before any of them is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.json_file import as_json, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")
_NUM_LISTED = 4
_CONVERT = {
    "BertModel": "transformers, "
    "BertModel.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)",
    "AutoModel": "transformers, "
    "AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)",
    "Dense": "sentence-transformers, SentenceTransformer(DIR).save(NEW_DIR)",
}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# What training scripts and wrappers put before BertModel's names, of which `encoder` is one too.
_WRAPPERS = re.compile(
    r"(?:(?:module|model|base_model|auto_model|transformer|\d+"
    r"|bert|roberta|electra|data2vec_text)\."
    r"|encoder\.(?=(?:embeddings|encoder|pooler)\.))*"
)


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out ``normal_``, which imports the compiler (a second) for meta tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.nn.init.normal_, Tensor.normal_):
            return None
        return function(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made in here have shapes and no memory, until weights are assigned."""
    with torch.device("meta"), _NoRandomNumbers():
        yield


def encoder_name(stored: str) -> str | None:
    """BertModel's name of a stored tensor; None for heads and buffers.

    Understands what wrappers put before it (``module.``, ``model.``, ``auto_model.``, ``bert.``,
    ``roberta.``, ``0.auto_model.``, ``_orig_mod.`` anywhere, one after the other), and
    TensorFlow's LayerNorm.
    """
    name = stored.replace("_orig_mod.", "")
    name = name[_WRAPPERS.match(name).end() :]
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    is_encoder = name.startswith(("embeddings.", "encoder.", "pooler."))
    return name if is_encoder and name not in _BUFFERS else None


class TensorReader:
    """Takes the tensors of known names and shapes out of files, and notes what does not fit.

    Args:
        shapes: by name, of all tensors to read.
        name_of: the name of a stored tensor, or None for one that is passed over.
        dtype: of the copies; None for that of the file.

    Attributes:
        tensors: copies of the stored tensors, by name. problems: why a tensor cannot be used, by
            name.
        stored: the first names in the files, and how many there are.
    """

    def __init__(
        self,
        shapes: Mapping[str, list[int]],
        name_of: Callable[[str], str | None],
        dtype: torch.dtype | None = torch.float32,
    ):
        self.shapes, self.name_of, self.dtype = shapes, name_of, dtype
        self.tensors: dict[str, Tensor] = {}
        self.problems: dict[str, str] = {}
        self.stored: list[str] = []
        self.num_stored = 0

    def read(self, path: Path) -> None:
        """Raises WeightsError if the file is truncated or no safetensors file."""
        with open_tensors(path) as file:
            names = sorted(file.keys())
            self.num_stored += len(names)
            self.stored += names[:_NUM_LISTED]
            for stored in names:
                if (name := self.name_of(stored)) is not None:
                    self._take(file, stored, name)

    def missing(self) -> list[str]:
        """Names that no file has."""
        return [n for n in self.shapes if n not in self.tensors and n not in self.problems]

    def finish(self, where: str, advice: str) -> dict[str, Tensor]:
        """All tensors; WeightsError lists the first problems after ``where``."""
        missing = {name: f"{name} {self.shapes[name]} is missing" for name in self.missing()}
        if problems := [*self.problems.values(), *missing.values()]:
            raise WeightsError(f"{where}: {first_of(problems)}; {advice}")
        return self.tensors

    def _take(self, file: Any, stored: str, name: str) -> None:
        reason = _misfit(file.get_slice(stored), self.shapes.get(name), name in self.tensors)
        if reason:
            self.problems[name] = f"{readable(stored)} {reason}"
        else:  # a copy is aligned and does not depend on the file
            tensor = file.get_tensor(stored)
            self.tensors[name] = tensor.to(self.dtype or tensor.dtype, copy=True)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, of the mode that the umask gives.

    Args:
        tensors: of any dtypes, shapes and strides, on any device.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, metadata)
    path.chmod(mode & 0o777)  # save_file lets nobody but the owner read its file


def first_of(problems: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    listed = list(problems)
    more = f"; and {len(listed) - _NUM_LISTED} more" if len(listed) > _NUM_LISTED else ""
    return "; ".join(listed[:_NUM_LISTED]) + more


def readable(name: str) -> str:
    """A stored name as it is, or escaped and cut where it is no ordinary one."""
    return name if re.fullmatch(r"[\w.\-/:]{1,120}", name, re.ASCII) else as_json(name)


def _misfit(stored: Any, shape: list[int] | None, is_repeated: bool) -> str | None:
    """Why a tensor (a slice of a safetensors file) cannot be used, or None."""
    if shape is None:
        return "has no place in this model"
    if is_repeated:
        return "is there twice"
    if stored.get_shape() != shape:
        return f"is {stored.get_shape()}, expected {shape}"
    if stored.get_dtype() not in _FLOATS:
        return f"is {stored.get_dtype()}, expected one of {', '.join(_FLOATS)}"
    return None


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """An open safetensors file; WeightsError if it is damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path}: truncated or not a safetensors file ({reason}); download or save it again"
        ) from None


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def weight_files(directory: Path, saver: str = "BertModel") -> list[Path]:
    """``model.safetensors``, or the files that its index names.

    Raises:
        WeightsError: there are none, one is missing, or the index names a file elsewhere.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        raise WeightsError(
            f"{directory} has no {WEIGHTS}; pickled weights (pytorch_model.bin) are not loaded, "
            f"because unpickling can run any code: convert them once with {_CONVERT[saver]}"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index}: weight_map is missing; download the checkpoint again")
    for name in shards.values():
        if not isinstance(name, str) or not _is_file_name(name):
            raise WeightsError(
                f"{index} names {as_json(name)}, which is no file of its folder; download it again"
            )
    paths = [directory / name for name in sorted(set(shards.values()))]
    for path in paths:
        if not path.is_file():
            raise WeightsError(
                f"{index} names {readable(path.name)}, which is missing; download it again"
            )
    return paths
