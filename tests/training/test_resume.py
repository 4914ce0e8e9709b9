"""A resumed run is the same run, or it is refused by name before anything is written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sbrrt_fast.cli import main
from sbrrt_fast.training import stopping
from sbrrt_fast.training.checkpoint import load_state
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.stopping import Stopped, StopSignals
from tests.helpers import read_log, small_sample, tiny_backbone

RUN = (
    *("--rounds", "14", "--round.batch-size", "4", "--seed", "3", "--smart.weight", "1"),
    *("--bregman.weight", "0.5", "--log.every", "3", "--log.evaluate-every", "5"),
    *("--log.state-every", "4", "--log.no-tensorboard"),
)


@pytest.fixture(scope="module", autouse=True)
def _hears_ctrl_c():
    """A process started in the background of a shell ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone, and of a run never interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    assert main(["train", *inputs(folder), "--output", str(folder / "whole"), *RUN]) == 0
    return folder


def inputs(folder: Path) -> list[str]:
    return ["--data-dir", str(folder / "data"), "--backbone", str(folder / "backbone")]


@pytest.fixture(scope="module")
def cut(place) -> Path:
    """A run that Ctrl-C ended in round 7."""
    with pytest.MonkeyPatch.context() as patch:
        signal_in_round(patch, 7, signal.SIGINT)
        assert main(["train", *inputs(place), "--output", str(place / "cut"), *RUN]) == 130
    return place / "cut"


@pytest.fixture
def run(cut, tmp_path) -> Path:
    """A copy of the interrupted run."""
    return Path(shutil.copytree(cut, tmp_path / "run"))


def signal_in_round(patch, number: int, signal_number: int) -> None:
    """The signal comes while a round is being trained."""
    original = Step.round_of

    def signalled(self, works, index, report=False):
        if index == number - 1:
            os.kill(os.getpid(), signal_number)
        return original(self, works, index, report)

    patch.setattr(Step, "round_of", signalled)


def lines(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "rounds_per_second"} for r in read_log(run)]


def same_run(a: Path, b: Path) -> bool:
    for name in ("best", "last"):
        for file in ("model.safetensors", "heads.safetensors"):
            x, y = (load_file(run / name / file) for run in (a, b))
            if x.keys() != y.keys() or not all(x[key].equal(y[key]) for key in x):
                return False
    scores = [json.loads((run / "metrics.json").read_text()) for run in (a, b)]
    keys = ("dev", "means", "best_round", "rounds")
    return lines(a) == lines(b) and all(scores[0][key] == scores[1][key] for key in keys)


def same_state(a: Path, b: Path) -> bool:
    """Whether two finished runs go on alike when they are extended."""
    (x, meta), (y, other) = (load_state(run / "state") for run in (a, b))
    is_timing = ("seconds", "interval")
    keys = [k for k in meta if k not in ("config", "inputs") and not k.endswith(is_timing)]
    same_tensors = x.keys() == y.keys() and all(x[key].equal(y[key]) for key in x)
    return same_tensors and all(meta[key] == other[key] for key in keys)


def contents(run: Path) -> dict[str, bytes]:
    paths = (path for path in run.rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def refused(argv: list[str], capsys) -> str:
    """The one line of a command that refuses."""
    capsys.readouterr()
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("number", [1, 3, 5, 13, 14])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_round_and_the_run_goes_on_as_if_it_had_not(
    place, tmp_path, monkeypatch, capsys, name, number
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_round(patch, number, signal.Signals[name])
        status = main(["train", *inputs(place), "--output", str(run), *RUN])
    assert status == {"SIGTERM": 143, "SIGINT": 130}[name]
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"the state after round {number} of 14 is saved" in message
    command = message.partition("`")[2].rstrip("`").split()
    assert not (run / "metrics.json").exists()
    assert main(command[1:]) == 0
    assert same_run(run, place / "whole")
    assert same_state(run, place / "whole")


def test_a_signal_during_an_evaluation_gives_it_up_and_it_is_made_up_for(
    place, tmp_path, monkeypatch
):
    run, calls = tmp_path / "run", []

    def batches(task, count):
        calls.append(task.name)
        if len(calls) == 4:  # the second evaluation's first task
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, count)

    original = sys.modules["sbrrt_fast.training.scores.batches"].length_batches
    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.training.scores.batches.length_batches", batches)
        assert main(["train", *inputs(place), "--output", str(run), *RUN]) == 143
    assert len(calls) == 4 and lines(run)[-1]["round"] == 10
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, place / "whole")


def test_a_signal_during_the_last_evaluation_keeps_the_weights(place, tmp_path, monkeypatch):
    whole, run, flags = tmp_path / "whole", tmp_path / "run", (*RUN, "--log.dev-rows", "9")
    assert main(["train", *inputs(place), "--output", str(whole), *flags]) == 0
    loaded = sys.modules["sbrrt_fast.training.dev_evaluator"].load_model

    def signalled(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        return loaded(folder)

    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.training.dev_evaluator.load_model", signalled)
        assert main(["train", *inputs(place), "--output", str(run), *flags]) == 143
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, whole)


def test_a_second_signal_ends_at_once():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_the_process_ignores_stays_ignored(monkeypatch):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            stop.check()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_signal_before_a_stoppable_block_stops_it():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM") as stopped, stop.stoppable():
            raise AssertionError
    assert stopped.value.status == 143 and stopping._NAMES


def test_resume_alone_takes_the_run_s_own_settings(place, run):
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert same_run(run, place / "whole")


def test_what_may_differ_may_differ(place, run, tmp_path):
    """Logging, device, and where data and backbone are."""
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "backbone", tmp_path / "backbone")
    before = (run / "config.yaml").read_bytes()
    flags = ["--device", "cpu", "--log.gain", "--no-graphs", "--profile"]
    assert main(["train", *inputs(tmp_path), "--output", str(run), *RUN, *flags, "--resume"]) == 0
    assert same_run(run, place / "whole")
    assert (run / "config.yaml").read_bytes() == before


def test_tokens_from_the_disk_give_the_same_run(place, run, tmp_path, monkeypatch):
    flags = ("--token-cache", str(tmp_path / "tokens"))
    whole = tmp_path / "whole"
    assert main(["train", *inputs(place), "--output", str(whole), *RUN, *flags]) == 0
    assert len(list((tmp_path / "tokens").glob("*/tokens.npy"))) == 6
    assert (whole / "config.yaml").read_bytes() == (place / "whole" / "config.yaml").read_bytes()

    def refuse(*args):
        raise AssertionError("it was tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.data.token_cache.cache.tokenised", refuse)
        patch.setattr("sbrrt_fast.data.load.tokenised", refuse)
        assert main(["train", "--output", str(run), "--resume", *inputs(place), *RUN, *flags]) == 0
    assert same_run(whole, place / "whole") and same_run(run, place / "whole")
    kept, (_, meta) = (load_state(path / "state") for path in (whole, place / "whole"))
    assert kept[1]["inputs"] == meta["inputs"]


def test_a_run_that_began_with_tokens_from_the_disk_goes_on_without(place, tmp_path, monkeypatch):
    run, flags = tmp_path / "run", ("--token-cache", str(tmp_path / "tokens"))
    with monkeypatch.context() as patch:
        signal_in_round(patch, 7, signal.SIGTERM)
        assert main(["train", *inputs(place), "--output", str(run), *RUN, *flags]) == 143
    shutil.rmtree(tmp_path / "tokens")
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert not (tmp_path / "tokens").exists()
    assert same_run(run, place / "whole")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--seed", "4"), ["seed 3, not 4"]),
        (("--round.batch-size", "8"), ["round.batch_size 4, not 8"]),
        (("--optimizer.learning-rate", "1e-3"), ["optimizer.learning_rate 0.0001, not 0.001"]),
        (("--smart.weight", "0", "--rounds", "9"), ["rounds 14, not 9", "smart.weight 1.0, not 0"]),
        (("--precision", "bf16"), ["precision 'fp32', not 'bf16'"]),
        (("--log.evaluate-every", "2"), ["log.evaluate_every 5, not 2"]),
        (("--tasks.sst.weight", "2"), ["tasks.sst.weight 1.0, not 2.0"]),
        (("--backend", "reference"), ["backend 'auto', not 'reference'"]),
    ],
)
def test_every_setting_that_differs_is_named(run, capsys, flags, names):
    before = contents(run)
    message = refused(["train", "--output", str(run), "--resume", *flags], capsys)
    assert all(name in message for name in names)
    assert contents(run) == before


def test_a_config_of_another_run_is_compared_too(place, run, tmp_path, capsys):
    text = (place / "whole" / "config.yaml").read_text().replace("seed: 3", "seed: 9")
    (tmp_path / "other.yaml").write_text(text)
    flags = ["--config", str(tmp_path / "other.yaml"), "--output", str(run), "--resume"]
    assert "seed 3, not 9" in refused(["train", *flags], capsys)


def test_an_edited_config_of_the_run_itself_is_found_out(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 3", "seed: 9"))
    assert "seed 3, not 9" in refused(["train", "--output", str(run), "--resume"], capsys)


def test_a_moved_run_is_resumed_where_its_config_is(place, cut, run):
    before = contents(cut)
    assert main(["train", "--config", str(run / "config.yaml"), "--resume"]) == 0
    assert same_run(run, place / "whole")
    assert contents(cut) == before


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_rows_are_named(place, run, tmp_path, capsys, split):
    shutil.copytree(place / "data", tmp_path / "data")
    path = tmp_path / "data" / f"sts-{split}.csv"
    path.write_text(path.read_text().replace("a ", "the ", 1))
    flags = ["--data-dir", str(tmp_path / "data"), "--output", str(run), "--resume"]
    before = contents(run)
    assert f"the {split} split of task 'sts', as tokenised," in refused(["train", *flags], capsys)
    assert contents(run) == before


def damage(path: Path, rng: random.Random) -> str:
    """Changes a file in one of several ways; says how."""
    kind = rng.choice(["remove", "cut", "flip", "empty", "grow"])
    data = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
        return kind
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "empty":
        data.clear()
    else:
        data += b"x"
    path.write_bytes(data)
    return kind


def saved_files(run: Path) -> list[Path]:
    paths = (path for name in ("state", "best", "last") for path in (run / name).rglob("*"))
    return sorted(path for path in paths if path.is_file())


def check_damage_is_refused(cut: Path, folder: Path, seed: int, capsys) -> None:
    rng = random.Random(seed)
    run = Path(shutil.copytree(cut, folder / str(seed)))
    path = rng.choice(saved_files(run))
    kind = damage(path, rng)
    before = contents(run)
    message = refused(["train", "--output", str(run), "--resume"], capsys)
    if path.name != "checksums.json":
        assert path.name in message, (seed, kind, path, message)
    assert str(path.parent) in message or path.parent.name in message
    assert contents(run) == before
    shutil.rmtree(run)


@pytest.mark.parametrize("seed", range(8))
def test_damage_to_anything_saved_is_refused_by_name(cut, tmp_path, capsys, seed):
    check_damage_is_refused(cut, tmp_path, seed, capsys)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_hundred_damaged_states(cut, tmp_path, capsys, seed):
    check_damage_is_refused(cut, tmp_path, seed, capsys)


def kill_once(arguments: list[str], run: Path, rng: random.Random, in_save: bool) -> bool:
    """Starts training and kills it at a random moment, or in a save; False if it had ended."""
    command = [sys.executable, "-m", "sbrrt_fast.cli", "train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while process.poll() is None and not list(run.glob("metrics.jsonl")):
        time.sleep(0.01)
    wait = time.monotonic() + rng.uniform(0, 3)
    while process.poll() is None and time.monotonic() - begun < 60:
        due = time.monotonic() > wait
        if due and (not in_save or any(run.glob("*.tmp-*"))):
            break
        time.sleep(0.0005)
    ended = process.poll() is not None
    process.kill()
    assert process.wait() == (0 if ended else -signal.SIGKILL)
    return not ended


@pytest.mark.long
def test_a_hundred_kills_give_the_run_never_killed(place, tmp_path):
    rng, num_kills, num_in_saves, num_runs = random.Random(0), 0, 0, 0
    flags = [flag if flag != "14" else "300" for flag in RUN]
    whole = tmp_path / "whole"
    assert main(["train", *inputs(place), "--output", str(whole), *flags]) == 0
    while num_kills < 100:
        run, in_save = tmp_path / f"run{num_runs}", num_in_saves < 30
        arguments = [*inputs(place), "--output", str(run), *flags]
        while (
            num_kills < 100
            and not (run / "metrics.json").exists()  # killed after its end
            and kill_once(arguments, run, rng, in_save)
        ):
            num_kills += 1
            num_in_saves += in_save
            in_save = num_in_saves < 30 and rng.random() < 0.5
            has_state = any(run.glob("state*/checksums.json"))
            arguments = ["--output", str(run), "--resume"]
            if not has_state:
                arguments = [*inputs(place), "--output", str(run), *flags, "--overwrite"]
        if not (run / "metrics.json").exists():
            assert main(["train", *arguments]) == 0
        assert same_run(run, whole)
        num_runs += 1
    print(f"{num_kills} kills, {num_in_saves} of them in saves, in {num_runs} runs: all the same")
    assert num_in_saves >= 30
