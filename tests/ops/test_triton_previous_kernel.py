"""Triton's kernels that start while the one before them runs: each waits, and which GPUs do it."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sbrrt_fast import kernels
from sbrrt_fast.kernels import launch as launching
from sbrrt_fast.kernels.previous_kernel import starts_early

FOLDER = Path(kernels.__file__).parent


@pytest.fixture(autouse=True)
def forget():
    starts_early.cache_clear()
    yield
    starts_early.cache_clear()


def kernel_functions() -> dict[str, ast.FunctionDef]:
    """The functions that are launched, by file and name."""
    return {
        f"{path.name}: {node.name}": node
        for path in sorted(FOLDER.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
        and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }  # fmt: skip


def test_every_kernel_waits_first():
    found = kernel_functions()
    assert len(found) > 20
    first = {
        name: ast.unparse(node.body[1 if ast.get_docstring(node) else 0])
        for name, node in found.items()
    }
    assert set(first.values()) == {"await_previous()"}, first


@pytest.mark.parametrize(
    ("setting", "hip", "capability", "does"),
    [
        (None, None, (9, 0), True),
        ("1", None, (10, 0), True),
        ("0", None, (9, 0), False),
        (None, None, (8, 9), False),
        (None, "6.4", (9, 4), False),
    ],
)
def test_which_gpus_start_kernels_early(setting, hip, capability, does, monkeypatch):
    monkeypatch.delenv("SBRRT_PROGRAMMATIC_LAUNCH", raising=False)
    if setting:
        monkeypatch.setenv("SBRRT_PROGRAMMATIC_LAUNCH", setting)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert starts_early(0) == does


def test_a_setting_that_is_neither_is_refused(monkeypatch):
    monkeypatch.setenv("SBRRT_PROGRAMMATIC_LAUNCH", "off")
    with pytest.raises(ValueError, match="SBRRT_PROGRAMMATIC_LAUNCH must be 0 or 1"):
        starts_early(0)


@pytest.mark.parametrize(("early", "expected"), [(True, {"launch_pdl": True}), (False, {})])
def test_a_launch_says_so(early, expected, monkeypatch):
    seen = []
    kernel = {(1,): lambda *arguments, **options: seen.append(options)}
    monkeypatch.setattr(launching, "starts_early", lambda device: early)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    on_gpu = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))
    launching.launch(kernel, (1,), on_gpu)
    launching.launch(kernel, (1,), torch.ones(1))
    assert seen == [expected, {}]
