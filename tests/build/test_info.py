"""``sbrrt-fast info``: it works wherever anything is missing, and says what and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from importlib import metadata

import pytest
import torch

from sbrrt_fast import _extension, info
from sbrrt_fast.cli import main
from sbrrt_fast.commands.info import format_info
from sbrrt_fast.ops._backend.dispatch import BACKENDS
from sbrrt_fast.ops.registry import OPS

BARE = """
import socket, sys
sys.modules["sbrrt_fast._C"] = None
sys.modules["triton"] = None
def refuse(*args, **kwargs):
    raise AssertionError("info opened a socket")
socket.socket.connect = refuse
from sbrrt_fast.cli import main
sys.exit(main(["info", *sys.argv[1:]]))
"""


def section(text: str, title: str) -> list[str]:
    """The lines below a title."""
    return next(part for part in text.split("\n\n") if part.startswith(title)).splitlines()[1:]


def told(capsys, *flags: str) -> str:
    assert main(["info", *flags]) == 0
    return capsys.readouterr().out


def test_versions_are_those_installed(capsys):
    facts = json.loads(told(capsys, "--json"))
    versions = {name: found["version"] for name, found in facts["versions"].items()}
    assert versions["sbrrt_fast"] == metadata.version("sbrrt_fast")
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    for found in facts["versions"].values():
        assert (found["version"] is None) != (found["reason"] is None)


def test_the_table_says_of_every_op_what_it_says_itself(capsys):
    facts = json.loads(told(capsys, "--json"))
    assert list(facts["ops"]) == [op.name for op in OPS]
    for op in OPS:
        found = {name: reason or "yes" for name, reason in facts["ops"][op.name].items()}
        assert found == dict(op.table())
    lines = section(told(capsys), "which implementation can run")
    assert lines[0].split() == ["op", *BACKENDS]
    for line, op in zip(lines[1:], OPS, strict=True):
        cells = ["yes" if state == "yes" else "no" for _, state in op.table()]
        assert line.split() == [op.name, *cells]


def test_each_reason_is_told_once_with_its_ops():
    reasons = {"cuda": "no GPU", "triton": "no triton", "cpu": None, "reference": None}
    ops = {"one": reasons, "two": {**reasons, "cpu": "not built"}}
    ops["three"] = {**reasons, "cuda": "head dim 48", "cpu": "not built"}
    facts = info.collect() | {"ops": ops}
    assert section(format_info(facts), "why not") == [
        "  cuda    no GPU (one, two)",
        "  cuda    head dim 48 (three)",
        "  triton  no triton (all 3 ops)",
        "  cpu     not built (two, three)",
    ]
    facts["ops"] = {"one": dict.fromkeys(BACKENDS)}
    assert "why not" not in format_info(facts)


@pytest.mark.skipif(_extension.extension is None, reason="the C++ ops are not built")
def test_a_built_extension_tells_how_it_was_built(capsys):
    build = _extension.extension.build_info()
    lines = [line.split(maxsplit=1) for line in section(told(capsys), "C++ ops")]
    assert ["compiler", build["compiler"]] in lines
    assert ["file", _extension.extension.__file__] in lines
    facts = json.loads(told(capsys, "--json"))
    assert facts["extension"]["build"] == build
    assert facts["ops"]["dropout_mask"]["cpu"] is None


def test_without_the_extension_triton_and_network_it_says_why():
    environment = {**os.environ, "PATH": "/nowhere", "CUDA_HOME": "/nowhere"}
    command = [sys.executable, "-c", BARE, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["extension"]["loaded"] is False
    assert "not built; run `pip install" in facts["extension"]["reason"]
    assert facts["ops"]["dropout_mask"]["cpu"] == facts["extension"]["reason"]
    assert facts["ops"]["dropout_mask"]["reference"] is None
    assert facts["versions"]["triton"]["reason"].startswith("not installed")
    text = format_info(facts)
    assert section(text, "C++ ops") == [f"  not there: {facts['extension']['reason']}"]
    assert sum(facts["extension"]["reason"] in line for line in section(text, "why not")) == 1


def test_an_extension_of_another_torch_is_told(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "extension", None)
    monkeypatch.setattr(_extension, "extension_error", "the C++ ops do not load (undefined symbol)")
    text = told(capsys)
    assert section(text, "C++ ops") == ["  not there: the C++ ops do not load (undefined symbol)"]
    reason = f"the C++ ops do not load (undefined symbol) (all {len(OPS)} ops)"
    assert ["cpu", *reason.split()] in [line.split() for line in section(text, "why not")]


def test_triton_is_told_where_it_is(monkeypatch):
    module = types.ModuleType("triton")
    module.__version__ = "3.7.1"
    monkeypatch.setitem(sys.modules, "triton", module)
    assert info.versions()["triton"] == {"version": "3.7.1", "reason": None}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import libtriton_that_is_missing", "No module named 'libtriton_that_is_missing'"),
        ("raise RuntimeError('no driver\\nmore')", "no driver"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_triton_that_does_not_import_is_told(source, reason, tmp_path, monkeypatch):
    (tmp_path / "triton.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    found = info.versions()["triton"]
    assert found == {"version": None, "reason": f"does not import: {reason}"}


@pytest.mark.parametrize(
    ("script", "version", "reason"),
    [
        ("echo Cuda compilation tools, release 12.8, V12.8.93", "12.8 ({nvcc})", None),
        ("echo hello", None, "{nvcc} tells no release"),
    ],
)
def test_the_cuda_toolkit_is_the_one_named(script, version, reason, tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = info.versions()["CUDA toolkit"]
    expected = {"version": version, "reason": reason}
    assert found == {k: v and v.replace("{nvcc}", str(nvcc)) for k, v in expected.items()}


def test_devices_are_those_that_torch_sees():
    found = info.devices()
    assert found["cpu"]["num_threads"] == torch.get_num_threads()
    assert found["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert bool(found["gpus"]) == (found["gpu_reason"] is None)


def test_gpus_have_name_and_memory(monkeypatch):
    properties = types.SimpleNamespace(name="H200", major=9, minor=0, total_memory=140 << 30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    facts = info.collect()
    assert facts["versions"]["torch CUDA"]["version"] == "13.0"
    lines = section(format_info(facts), "devices")
    assert lines[1:] == [
        "  GPU 0  H200, 140.0 GiB, capability 9.0",
        "  GPU 1  H200, 140.0 GiB, capability 9.0",
    ]


def test_a_driver_that_torch_cannot_use_is_the_reason(monkeypatch):
    def is_available():
        import warnings

        warnings.warn("CUDA initialization: the driver is too old\nupdate it", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert info.devices()["gpu_reason"] == "CUDA initialization: the driver is too old"
