"""The choice of implementation: first come without a reason, named ones with theirs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sbrrt_fast import _extension
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops._backend.dispatch import BACKENDS, Implementation, Op, always_available
from sbrrt_fast.ops.registry import OPS, require


def even(number, *, sign=1):
    return None if number % 2 == 0 else f"{number} is odd"


def pair(missing=always_available):
    """An op that halves even numbers by ``triton``, and all by ``reference``."""
    return Op(
        "halve",
        [
            Implementation("triton", lambda n, *, sign=1: ("triton", sign * n / 2), even, missing),
            Implementation(
                "reference", lambda n, *, sign=1: ("reference", sign * n / 2), lambda *a, **k: None,
                always_available,
            ),
        ],
    )  # fmt: skip


def test_auto_takes_the_first_that_can():
    halve = pair()
    assert halve(4) == ("triton", 2)
    assert halve(4, sign=-1) == ("triton", -2)
    assert halve(3) == ("reference", 1.5)
    assert pair(lambda: "no GPU")(4) == ("reference", 2)


def test_a_named_one_runs_or_says_why_not():
    halve = pair()
    assert halve(4, backend="reference") == ("reference", 2)
    with pytest.raises(BackendError, match=r"^halve cannot run here \(triton: 3 is odd\)$"):
        halve(3, backend="triton")
    with pytest.raises(BackendError, match=r"\(triton: no GPU\)"):
        pair(lambda: "no GPU")(4, backend="triton")
    with pytest.raises(BackendError, match=r"\(cuda: there is no such implementation\)"):
        halve(4, backend="cuda")


def test_where_none_can_every_reason_is_told():
    missing = Implementation("cuda", abs, even, lambda: "no GPU")
    op = Op("halve", [*pair().implementations[:1], missing])
    with pytest.raises(BackendError, match=r"\(triton: 3 is odd; cuda: no GPU\)"):
        op(3)


def test_the_table_has_every_backend():
    table = dict(pair(lambda: "no GPU").table())
    absent = "not implemented for this op"
    assert table == {"cuda": absent, "triton": "no GPU", "cpu": absent, "reference": "yes"}
    assert list(table) == list(BACKENDS)


def test_every_op_can_run_here_and_on_the_reference():
    assert _extension.extension is not None, _extension.extension_error
    for op in OPS:
        table = dict(op.table())
        assert (table["cpu"], table["reference"]) == ("yes", "yes"), op.name
    for backend in ("auto", "cpu", "reference"):
        require(backend)
    with pytest.raises(BackendError, match="cannot run every op here"):
        require("cuda")


# An extension without the kernels of two ops.
PARTIAL = """
import json, sys, types
from importlib.machinery import ModuleSpec
import torch
module = types.ModuleType("sbrrt_fast._C")
module.__spec__ = ModuleSpec("sbrrt_fast._C", None, origin="_C.so")
module.build_info = lambda: {"cuda": None, "cuda_reason": "it is not one"}
sys.modules["sbrrt_fast._C"] = module
library = torch.library.Library("sbrrt", "IMPL")
for name in json.load(sys.stdin):
    if name not in ("symmetric_kl_forward_into", "gradient_norm_into"):
        library.impl(name, lambda *args: None, "CPU")

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import native_reason
from sbrrt_fast.ops.gradient_norm import gradient_norm
from sbrrt_fast.ops.registry import OPS, require
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta
told = []
ones = torch.ones(2, 3)
for call in (
    lambda: symmetric_kl_delta(ones, ones, backend="cpu"),
    lambda: gradient_norm([ones], backend="cpu"),
    lambda: require("cpu"),
):
    try:
        call()
    except BackendError as error:
        told.append(str(error))
divergence = symmetric_kl_delta(ones, 0 * ones, backend="auto")
values = divergence.tolist(), gradient_norm([ones]).item()
table = {op.name: dict(op.table())["cpu"] for op in OPS}
print(json.dumps([told, values, table, native_reason([ones])]))
"""


def test_a_build_without_an_op_is_told():
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("sbrrt::")]
    done = subprocess.run(
        [sys.executable, "-c", PARTIAL],
        input=json.dumps([n.removeprefix("sbrrt::") for n in names]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told, values, table, update_reason = json.loads(done.stdout)
    lacking = "this build of the C++ ops has no {} for CPU; reinstall it: `pip install"
    divergence, norm = lacking.format("symmetric_kl"), lacking.format("gradient_norm")
    assert told[0].startswith(f"symmetric_kl cannot run here (cpu: {divergence}")
    assert told[1].startswith(f"gradient_norm cannot run here (cpu: {norm}")
    assert f"symmetric_kl: {divergence}" in told[2]
    assert values == [[0.0, 0.0], pytest.approx(6**0.5)]
    assert {n for n, state in table.items() if state != "yes"} == {"symmetric_kl", "gradient_norm"}
    assert update_reason is None
