"""Bad arguments get an error by name and change nothing; a named backend says why it cannot run."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops._backend.library import HOST_FUNCTIONS
from tests.ops.backends import DEVICES, marks
from tests.ops.cases import OPS
from tests.ops.on_device import equal, moved
from tests.ops.write_samples import schema, written

LIBRARIES = {"sbrrt": "cpu", "sbrrt_triton": "triton"}  # and whose marks


def bad_calls(*libraries: str):
    """Every writing op that takes a bad argument, in each library that refuses it."""
    for op in OPS.values():
        for i, bad in enumerate(op.bad):
            for library in [x for x in bad.where if x in libraries]:
                for name in op.writing:
                    takes_it = bad.argument in [a.name for a in schema(name, library).arguments]
                    if takes_it and (bad.parts is None or any(p in name for p in bad.parts)):
                        yield pytest.param(
                            op, library, name, bad, id=f"{library}-{name}-{bad.argument}-{i}",
                            marks=marks(op, LIBRARIES[library]),
                        )  # fmt: skip


def call(library: str, name: str, values: dict) -> None:
    arguments = [values[argument.name] for argument in schema(name, library).arguments]
    if any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves(arguments)):
        host_function(name)(*arguments) if library == "sbrrt_triton" else None
    getattr(getattr(torch.ops, library), name)(*arguments)


def host_function(name: str):
    """Of a Triton op, for torch runs none where a tensor is on meta."""
    module, function = HOST_FUNCTIONS[name]
    return getattr(import_module(f"sbrrt_fast.kernels.{module}"), function)


def placed(values: dict, library: str) -> dict:
    """Where the library's kernels run, but for what is to be elsewhere."""
    device = DEVICES.get(LIBRARIES[library], "cpu")
    is_moved = lambda x: isinstance(x, Tensor) and not x.is_meta  # noqa: E731
    return tree_map(lambda x: x.to(device) if is_moved(x) else x, values)


@pytest.mark.parametrize(("op", "library", "name", "bad"), list(bad_calls(*LIBRARIES)))
def test_bad_argument(op, library, name, bad):
    values = placed(op.good() | {bad.argument: bad.value}, library)
    results = [x for a in written(name) for x in tree_leaves(values[a]) if isinstance(x, Tensor)]
    results = [x for x in results if not x.is_meta]
    before = moved(results, "cpu")
    with pytest.raises(bad.error, match=rf"\b{name.removesuffix('_into')}: .*{bad.message}"):
        call(library, name, values)
    assert all(equal([x.cpu()], [y]) for x, y in zip(results, before, strict=True))


@pytest.mark.parametrize(
    ("op", "library"),
    [
        pytest.param(op, library, id=f"{library}-{op.name}", marks=marks(op, backend))
        for op in OPS.values()
        for library, backend in LIBRARIES.items()
    ],
)
def test_the_arguments_without_it_are_good(op, library):
    for name in op.writing:
        call(library, name, placed(op.good(), library))


def of_shapes(bad) -> bool:
    """Whether tracing can see it: meta tensors have no values, and float16 is for some device."""
    tensors = [x for x in tree_leaves(bad.value) if isinstance(x, Tensor)]
    is_told = re.search("dtype|dense|dimension|like params|written in", bad.message) is not None
    seen = is_told and not any(x.is_meta or x.dtype == torch.float16 for x in tensors)
    return bool(tensors) and seen


@pytest.mark.parametrize(
    ("op", "library", "name", "bad"), [x for x in bad_calls("sbrrt") if of_shapes(x.values[3])]
)
def test_tracing_refuses_the_same(op, library, name, bad):
    values = tree_map(to_meta, op.good() | {bad.argument: bad.value})
    with pytest.raises(bad.error, match=rf"\b{name.removesuffix('_into')}: .*{bad.message}"):
        call(library, name, values)


def to_meta(x):
    return x.to("meta") if isinstance(x, Tensor) else x


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        pytest.param(backend, reason, id=f"{op.name}-{backend}-{i}", marks=marks(op, backend))
        for op in OPS.values()
        for i, reason in enumerate(op.reasons)
        for backend in reason.backends
    ],
)
def test_a_named_backend_gives_its_reason(backend, reason):
    with (
        torch.device(DEVICES.get(backend, "cpu")),
        pytest.raises(BackendError, match=reason.message),
    ):
        reason.call(backend)
