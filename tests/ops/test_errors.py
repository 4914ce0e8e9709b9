"""Bad arguments get an error by name and change nothing; a named backend says why it cannot run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sbrrt_fast.errors import BackendError
from tests.ops.backends import DEVICES, marks
from tests.ops.cases import OPS
from tests.ops.on_device import equal, moved
from tests.ops.write_samples import schema, written

LIBRARIES = {"sbrrt": "cpu", "sbrrt_triton": "triton"}  # and whose marks


def bad_calls():
    """Every writing op that takes a bad argument, in each library that refuses it."""
    for op in OPS.values():
        for i, bad in enumerate(op.bad):
            for library in bad.where:
                for name in op.writing:
                    takes_it = bad.argument in [a.name for a in schema(name, library).arguments]
                    if takes_it and (bad.parts is None or any(p in name for p in bad.parts)):
                        yield pytest.param(
                            op, library, name, bad, id=f"{library}-{name}-{bad.argument}-{i}",
                            marks=marks(op, LIBRARIES[library]),
                        )  # fmt: skip


def call(library: str, name: str, values: dict) -> None:
    getattr(getattr(torch.ops, library), name)(
        **{a.name: values[a.name] for a in schema(name, library).arguments}
    )


@pytest.mark.parametrize(("op", "library", "name", "bad"), list(bad_calls()))
def test_bad_argument(op, library, name, bad):
    values = op.good() | {bad.argument: bad.value}
    results = [x for a in written(name) for x in tree_leaves(values[a]) if isinstance(x, Tensor)]
    before = moved(results, "cpu")
    with pytest.raises(bad.error, match=rf"\b{name.removesuffix('_into')}: .*{bad.message}"):
        call(library, name, values)
    assert all(x.is_meta or equal([x], [y]) for x, y in zip(results, before, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_arguments_without_it_are_good(op, library):
    for name in op.writing:
        call(library, name, op.good())


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
