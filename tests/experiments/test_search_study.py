"""The study of a search: trials are begun once, gone on with after a kill, and told once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")

from optuna.trial import TrialState  # noqa: E402

from sbrrt_fast.config import RunConfig  # noqa: E402
from sbrrt_fast.errors import ConfigError, OutputError, SbrrtError  # noqa: E402
from sbrrt_fast.experiments.search.objective import Objective  # noqa: E402
from sbrrt_fast.experiments.search.plan import Plan  # noqa: E402
from sbrrt_fast.experiments.search.space import Choice, Range, Space  # noqa: E402
from sbrrt_fast.experiments.search.study import SharedStudy  # noqa: E402

SPACE = Space(
    (
        Range("optimizer.learning_rate", 1e-5, 1e-3, is_whole=False, log=True),
        Range("round.batch_size", 2, 8, is_whole=True, step=2),
        Choice("optimizer.betas", ([0.9, 0.999], [0.9, 0.98])),
    )
)
GRID = Space((Choice("smart.radius", (0.1, 0.2, 0.3)), Range("rounds", 1, 2, is_whole=True)))


def plan(folder: Path, **changes) -> Plan:
    made = Plan(RunConfig(), SPACE, Objective(), "random", "none", 1, folder / "search")
    return replace(made, **changes)


def finish(shared: SharedStudy, claim, value: float) -> None:
    shared.tell(claim, value, TrialState.COMPLETE)
    claim.lock.release()


def settings_of(folder: Path, count: int, **changes) -> list[dict]:
    """Of the first trials of a search."""
    shared = SharedStudy(plan(folder, **changes))
    found = []
    for number in range(count):
        claim = shared.claim(count)
        found.append(claim.settings)
        finish(shared, claim, 0.1 * number)
    assert shared.claim(count) is None
    return found


def test_two_processes_never_have_the_same_trial(tmp_path):
    first, second = SharedStudy(plan(tmp_path)), SharedStudy(plan(tmp_path))
    claims = [shared.claim(4) for shared in (first, second, first, second)]
    assert [claim.number for claim in claims] == [1, 2, 3, 4]
    assert len({str(claim.settings) for claim in claims}) == 4
    assert not any(claim.is_resumed for claim in claims)
    assert first.claim(4) is None and second.claim(4) is None


def test_a_trial_whose_process_is_gone_goes_on_with_its_settings(tmp_path):
    claim = SharedStudy(plan(tmp_path)).claim(3)
    claim.trial.report(0.5, 25)
    claim.lock.release()  # as the system does when the process ends
    again = SharedStudy(plan(tmp_path)).claim(3)
    assert (again.number, again.settings, again.is_resumed) == (1, claim.settings, True)
    assert again.reported == {25}


def test_settings_that_a_kill_left_out_are_made_up_for(tmp_path, monkeypatch):
    """A kill between Optuna's noting of the trial and that of its last value."""
    shared = SharedStudy(plan(tmp_path))
    suggest = Space.suggest

    def killed(self, trial):
        self.settings[0].suggest(trial)
        raise KeyboardInterrupt

    monkeypatch.setattr(Space, "suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        shared.claim(2)
    monkeypatch.setattr(Space, "suggest", suggest)
    (frozen,) = shared.trials
    assert list(frozen.params) == ["optimizer.learning_rate"]
    del shared  # and its lock
    again = SharedStudy(plan(tmp_path)).claim(2)
    assert again.number == 1 and list(again.settings) == [s.key for s in SPACE.settings]
    assert again.settings["optimizer.learning_rate"] == frozen.params["optimizer.learning_rate"]


def test_draws_depend_on_the_seed_and_the_number_alone(tmp_path):
    """Not on how often the search was stopped, nor on who asks."""
    whole = settings_of(tmp_path / "whole", 4)
    for count in range(1, 5):
        shared = SharedStudy(plan(tmp_path / "parts"))
        finish(shared, claim := shared.claim(count), 0.0)
        assert claim.settings == whole[count - 1]
    other = settings_of(tmp_path / "other", 4, base=RunConfig(seed=1))
    assert len({str(s) for s in [*whole, *other]}) == 8


def test_tpe_learns_from_what_is_told(tmp_path):
    """Where small rates score high, later trials have small ones."""
    shared = SharedStudy(plan(tmp_path, sampler="tpe"))
    rates = []
    for _ in range(30):
        claim = shared.claim(30)
        rates.append(claim.settings["optimizer.learning_rate"])
        finish(shared, claim, -rates[-1])
    assert sorted(rates[20:])[5] < sorted(rates[:10])[2]


def test_a_grid_has_every_combination_once(tmp_path):
    found = settings_of(tmp_path, 6, sampler="grid", space=GRID)
    wanted = [GRID.values(params) for params in GRID.grid()]
    assert sorted(map(str, found)) == sorted(map(str, wanted)) and found != wanted


def test_the_best_is_the_first_of_equal_ones(tmp_path):
    shared = SharedStudy(plan(tmp_path))
    for value in (0.1, 0.3, 0.3):
        finish(shared, shared.claim(9), value)
    failed = shared.claim(9)
    shared.tell(failed, None, TrialState.FAIL)
    assert shared.best.number == 1


def test_the_lowest_error_is_the_best(tmp_path):
    shared = SharedStudy(plan(tmp_path, objective=Objective("sts/mse")))
    for value in (0.3, 0.1, 0.2):
        finish(shared, shared.claim(9), value)
    assert shared.best.number == 1 and shared.study.direction.name == "MINIMIZE"


def test_a_killed_start_leaves_nothing_half_made(tmp_path, monkeypatch):
    grid = plan(tmp_path, sampler="grid", space=GRID)
    original, calls = optuna.Study.enqueue_trial, []

    def killed(self, params):
        original(self, params)
        calls.append(params)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "enqueue_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        SharedStudy(grid)
    assert not (grid.folder / "study.db").exists()
    monkeypatch.undo()
    assert len(SharedStudy(grid).study.get_trials()) == 6
    assert sorted(path.name for path in grid.folder.iterdir()) == [
        ".lock",
        "search.json",
        "study.db",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 2}, "holds a search with seeds 1, now it is 2"),
        ({"sampler": "tpe"}, "holds a search with sampler 'random', now it is 'tpe'"),
        ({"objective": Objective("sst/accuracy")}, "with metric 'overall', now it is 'sst/acc"),
        ({"base": RunConfig(rounds=5)}, "holds a search with rounds None, now it is 5"),
        ({"space": Space(SPACE.settings[:2])}, "with the space's optimizer.betas {'values'"),
    ],
)
def test_another_search_does_not_go_into_the_same_folder(tmp_path, changes, message):
    SharedStudy(plan(tmp_path))
    with pytest.raises(SbrrtError, match="choose another --output") as caught:
        SharedStudy(plan(tmp_path, **changes))
    assert message in str(caught.value)


def test_a_search_goes_on_with_settings_that_are_of_one_call(tmp_path):
    SharedStudy(plan(tmp_path))
    SharedStudy(plan(tmp_path, base=RunConfig(rank_timeout=60.0), keeps_models=True))


def test_a_release_with_new_settings_goes_on_with_an_older_search(tmp_path):
    """They have their defaults there."""
    made = plan(tmp_path)
    SharedStudy(made)
    path = made.folder / "search.json"
    recorded = json.loads(path.read_text())
    del recorded["base"]["smart"]["shared_dropout"]
    path.write_text(json.dumps(recorded))
    SharedStudy(made)


def test_somebody_s_own_folder_is_left_alone(tmp_path):
    made = plan(tmp_path)
    made.folder.mkdir()
    (made.folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and not the folder of a search"):
        SharedStudy(made)
    made.folder.joinpath("notes.txt").rename(tmp_path / "file")
    with pytest.raises(OutputError, match="is a file; give --output a folder"):
        SharedStudy(replace(made, folder=tmp_path / "file"))


def test_a_damaged_study_is_one_line(tmp_path):
    made = plan(tmp_path)
    SharedStudy(made)
    (made.folder / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(SbrrtError, match=r"study\.db: cannot be used \(.*file is not a database"):
        SharedStudy(made)


def test_a_study_of_another_release_is_one_line(tmp_path):
    made = plan(tmp_path)
    SharedStudy(made)
    with contextlib.closing(sqlite3.connect(made.folder / "study.db")) as database:
        database.execute("UPDATE version_info SET schema_version = 1")
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        database.commit()
    with pytest.raises(SbrrtError, match=r"study\.db: cannot be used \(The runtime optuna version"):
        SharedStudy(made)


@pytest.mark.parametrize("name", ["a b", "50%", "what?", "{x}", "#1"])
def test_a_folder_may_have_any_name(tmp_path, name):
    made = plan(tmp_path / name)
    SharedStudy(made)
    assert (made.folder / "study.db").is_file()


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband", "none"])
def test_pruners_end_a_trial_that_is_worse_than_all_before(tmp_path, pruner):
    shared = SharedStudy(plan(tmp_path, pruner=pruner))
    steps, ended = range(10, 101, 10), []
    for number in range(30):
        claim = shared.claim(30)
        level = 0.1 if number % 2 and number > 10 else 0.9
        for step in steps:
            claim.trial.report(level, step)
            if claim.trial.should_prune():
                ended.append(level)
                break
        shared.tell(claim, level, TrialState.COMPLETE)
    if pruner == "none":
        assert ended == []
    else:
        assert ended.count(0.1) > 3 and ended.count(0.9) <= ended.count(0.1)


def test_objectives_are_those_that_runs_have():
    config = RunConfig()
    scores = {"sst": {"accuracy": 0.5}, "sts": {"pearson": None}, "overall": float("nan")}
    assert Objective("sst/accuracy").of(scores) == 0.5
    assert Objective("sts/pearson").of(scores) is None and Objective().of(scores) is None
    assert not Objective("sst/accuracy").is_lower_better and Objective("sts/mse").is_lower_better
    Objective("sts/pearson").check(config)
    for name, hint in (("sst/acuracy", "did you mean 'sst/accuracy'?"), ("x", "there are overall")):
        with pytest.raises(ConfigError, match="--metric: runs have no score") as caught:
            Objective(name).check(config)
        assert hint in str(caught.value)
