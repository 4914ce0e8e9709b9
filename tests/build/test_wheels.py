"""`make wheel` tells what is wrong with a wheel; building and trying one takes it minutes."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.build import wheels
from tests.build.wheels import Failed, check, check_extension, pythons, run

PURE = Path("sbrrt_fast-0.1.0-py3-none-any.whl")
BUILT = Path("sbrrt_fast-0.1.0-1_torch2.13.0_cpu-cp311-cp311-linux_x86_64.whl")
CUDA_LINKED = " 0x1 (NEEDED)  Shared library: [libcudart.so.13]\n"
TORCH_LINKED = " 0x1 (NEEDED)  Shared library: [libtorch_cpu.so]\n"


@pytest.fixture
def no_tools(monkeypatch):
    """The tools find nothing, and an extension is linked to the CUDA runtime."""
    monkeypatch.setattr(wheels, "run", lambda *words, **more: CUDA_LINKED)


def loaded(cuda: str | None) -> dict:
    return {"loaded": True, "path": "_C.so", "build": {"cuda": cuda}}


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0+cu130", "2.13.1+cpu"])
@pytest.mark.usefixtures("no_tools")
def test_a_name_tells_the_torch_of_the_record(tmp_path, torch):
    wheel = tmp_path / BUILT
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "sbrrt_fast/_C.cpython-311-x86_64-linux-gnu.json", f'{{"torch": "{torch}"}}'
        )
    if torch == "2.13.0+cpu":
        check(tmp_path, wheel)
    else:
        with pytest.raises(Failed, match=f"is for torch {torch.partition('+')[0]}"):
            check(tmp_path, wheel)


@pytest.mark.usefixtures("no_tools")
def test_an_extension_is_where_it_should_be():
    check_extension(PURE, {"loaded": False})
    check_extension(BUILT, loaded("13.0"))
    with pytest.raises(Failed, match="the C\\+\\+ ops are"):
        check_extension(PURE, loaded(None))
    with pytest.raises(Failed, match="the C\\+\\+ ops are"):
        check_extension(BUILT, {"loaded": False})


def test_cuda_is_not_linked_unasked(no_tools, monkeypatch):
    with pytest.raises(Failed, match=r"links libcudart\.so\.13, and has no CUDA kernels"):
        check_extension(BUILT, loaded(None))
    monkeypatch.setattr(wheels, "run", lambda *words, **more: TORCH_LINKED)
    check_extension(BUILT, loaded(None))


def test_a_command_that_fails_is_told(tmp_path, capfd):
    assert run(sys.executable, "-c", "print('well')", cwd=tmp_path) == "well\n"
    with pytest.raises(Failed, match="exit status 3"):
        run(sys.executable, "-c", "raise SystemExit(3)", cwd=tmp_path)
    assert "well" in capfd.readouterr().out


def test_pythons_are_those_that_are_here(monkeypatch, tmp_path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = tmp_path / "bin"
    place.mkdir()
    (place / f"python{version}").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert pythons([version, "3.99"]) == {version: str(place / f"python{version}")}
