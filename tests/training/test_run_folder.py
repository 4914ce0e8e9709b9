"""Whose folder a run's output is: nothing of others is removed, nothing of an old run is left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sbrrt_fast.checksums import check_directory, checksummed_directory, remove_directory
from sbrrt_fast.cli import main
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import OutputError, SbrrtError, WeightsError
from sbrrt_fast.training.run_folder import open_output, start_run
from sbrrt_fast.training.step.step import Step
from tests.helpers import train_tiny

EVENTS = "tensorboard/events.out.tfevents.1"
OWN = ("notes.txt", "best/thesis.txt", "best/encoder/mine.json", EVENTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = train_tiny(tmp_path_factory.mktemp("owned"), "--log.tensorboard")
    assert main(["predict", str(folder), "--split", "dev"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a finished run that a test may change."""
    shutil.copytree(trained.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def train(run: Path, *flags: str) -> int:
    data, backbone = (str(run.parent / name) for name in ("data", "backbone"))
    arguments = ["--data-dir", data, "--backbone", backbone, "--output", str(run)]
    quick = ["--rounds", "2", "--round.batch-size", "4", "--log.no-tensorboard"]
    return main(["train", *arguments, *quick, *flags])


def files(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


@pytest.mark.parametrize(
    "name", ["best/x", "last/x", "state/x", "best.old/x", "config.yaml", "run.json", "a.b"]
)
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_folder_of_one_s_own_is_refused_and_untouched(trained, tmp_path, capsys, name, flags):
    write(tmp_path / "own", name)
    before = files(tmp_path / "own")
    arguments = ["--data-dir", str(trained.parent / "data"), "--output", str(tmp_path / "own")]
    assert main(["train", *arguments, *flags]) == 2
    assert "is not empty and not the folder of a run" in capsys.readouterr().err
    assert files(tmp_path / "own") == before


def test_overwriting_removes_what_runs_wrote_and_nothing_else(run):
    shutil.copytree(run / "best", run / "state.old")
    shutil.copytree(run / "best", run / "best.old")
    write(run, *OWN)
    (run / "metrics.json.tmp-1-2").write_text("half")
    old = files(run)
    assert train(run, "--overwrite", "--seed", "5") == 0
    new = files(run)
    for name in OWN:
        assert new[name] == old[name]
    assert not any(name.startswith(("state.old", "best.old", "predictions")) for name in new)
    assert not any("tmp" in name for name in new)
    assert [n for n in new if n.startswith("tensorboard")] == [EVENTS]
    assert new["last/heads.safetensors"] != old["last/heads.safetensors"]
    check_directory(run / "best")


def test_a_refused_run_leaves_the_old_one_as_it_was(run, capsys):
    before = files(run)
    assert train(run) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train(run, "--overwrite", "--round.batch-size", "100000") == 2
    assert files(run) == before


def test_lists_that_name_files_elsewhere_are_not_believed(run):
    write(run.parent, "precious.txt")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"predictions": ["../precious.txt"]}))
    with pytest.raises(OutputError, match="not the folder of a run"), open_output(run):
        pass
    damaged = (run / "best" / "checksums.json").read_text().replace("tasks.json", "../../prec")
    (run / "best" / "checksums.json").write_text(damaged)
    remove_directory(run / "best")
    assert (run.parent / "precious.txt").exists() and (run / "best" / "tasks.json").exists()


def test_a_file_in_the_way_of_a_saved_one_is_named_and_kept(tmp_path):
    write(tmp_path / "best", "a/b.json")
    with pytest.raises(OutputError, match=r"best/a/b\.json: was not written by this program"):
        fill(tmp_path / "best", "a/b.json")
    assert files(tmp_path) == {"best/a/b.json": b"mine: a/b.json"}


def fill(directory: Path, *names: str) -> None:
    with checksummed_directory(directory) as new:
        write(new, *names)


def test_own_files_survive_any_number_of_replacements(tmp_path):
    fill(tmp_path / "best", "one.json", "sub/two.json")
    write(tmp_path / "best", "sub/mine.txt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "best" / "link").symlink_to(tmp_path / "elsewhere")
    for names in (("one.json",), ("sub/two.json",), ("three.json",)):
        fill(tmp_path / "best", *names)
        assert set(files(tmp_path / "best")) == {*names, "checksums.json", "sub/mine.txt"}
        assert (tmp_path / "best" / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["best", "elsewhere"]


def test_a_link_in_place_of_a_saved_folder_is_not_followed(tmp_path):
    write(tmp_path / "elsewhere", "x")
    (tmp_path / "best").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="best: is a link"):
        fill(tmp_path / "best", "x")
    assert files(tmp_path / "elsewhere") == {"x": b"mine: x"}


def test_one_process_writes_to_a_folder(tmp_path):
    with open_output(tmp_path / "run"):
        start_run(tmp_path / "run")
        with (
            pytest.raises(SbrrtError, match=f"process {os.getpid()} on .* is training there"),
            open_output(tmp_path / "run", overwrite=True),
        ):
            pass
    with open_output(tmp_path / "run", overwrite=True):
        pass


def test_a_kill_gives_the_folder_back(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from sbrrt_fast.training.run_folder import open_output, start_run\n"
        "with open_output(Path(sys.argv[1])):\n"
        "    start_run(Path(sys.argv[1])); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert killed.returncode == 9
    with open_output(tmp_path / "run", overwrite=True):
        pass


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_place_of_the_folder_is_one_line(trained, tmp_path, capsys, below):
    write(tmp_path, "file")
    data = str(trained.parent / "data")
    assert main(["train", "--data-dir", data, "--output", str(tmp_path / "file" / below)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "is a file" in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_an_output_that_cannot_be_written_is_one_line(trained, capsys):
    data = str(trained.parent / "data")
    assert main(["train", "--data-dir", data, "--output", "/proc/sbrrt_fast/run"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "/proc/sbrrt_fast: cannot be written" in message


def at_round(patch, number: int, action) -> None:
    """Does something when a round begins, counted over all runs."""
    original, indices = Step.round_of, []

    def acting(self, works, index, report=False):
        indices.append(index)
        if len(indices) == number:
            action()
        return original(self, works, index, report)

    patch.setattr(Step, "round_of", acting)


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["sbrrt_fast.training.checkpoint", "sbrrt_fast.model.io"])
def test_a_full_disk_is_one_line_and_the_state_before_it_can_be_used(
    run, tmp_path, monkeypatch, capsys, where
):
    whole, full = (run.parent / name for name in ("whole", "full"))
    flags = ["--rounds", "6", "--log.state-every", "2", "--log.evaluate-every", "3"]
    assert train(run, *flags, "--output", str(whole)) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_round(patch, 4, lambda: patch.setattr(f"{where}.write_tensors", no_room))
        assert train(run, *flags, "--output", str(full)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written (No space left on device)" in message and str(full) in message
    assert not any("tmp" in name for name in files(full))
    assert main(["train", "--output", str(full), "--resume"]) == 0
    weights = "last/model.safetensors"
    assert (full / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize("log", ["--log.tensorboard", "--log.no-tensorboard"])
def test_a_folder_deleted_while_training_is_told(run, monkeypatch, capsys, log):
    gone = run.parent / "gone"
    flags = ["--rounds", "9", "--log.every", "2", "--output", str(gone), log]
    at_round(monkeypatch, 3, lambda: shutil.rmtree(gone))
    assert train(run, *flags) == 2
    assert "metrics.jsonl: was deleted while the run was writing" in capsys.readouterr().err
    assert not gone.exists()


def test_a_disk_without_room_is_told_before_training(run, monkeypatch, capsys):
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    output = run.parent / "other"
    flags = ["--output", str(output)]
    assert train(run, *flags) == 2
    assert "MiB and its disk has 0 MiB left" in capsys.readouterr().err
    assert list(files(output)) == [".lock"]


def test_the_configuration_of_a_run_is_a_recipe(run, tmp_path, monkeypatch):
    assert train(run, "--overwrite") == 0
    text = (run / "config.yaml").read_text()
    assert not any(line.startswith(("overwrite", "resume", "output")) for line in text.splitlines())
    config = load_config(run / "config.yaml")
    assert config.data_dir.is_absolute() and Path(config.model.backbone).is_absolute()
    monkeypatch.chdir(tmp_path)
    before = files(run)
    assert main(["train", "--config", str(run / "config.yaml"), "--output", "again"]) == 0
    assert files(run) == before
    weights = "last/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (run / weights).read_bytes()


def test_nothing_to_resume_is_one_line(tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path / "none"), "--resume"]) == 2
    assert "there is no run with a saved state to resume" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    with pytest.raises(WeightsError), open_output(tmp_path / "none", resume=True):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_fine_and_one_that_fails_is_not(
    tmp_path, monkeypatch, number
):
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OutputError, match="Input/output error"):
            fill(tmp_path / "best", "x")
    else:
        fill(tmp_path / "best", "x")
        check_directory(tmp_path / "best")
