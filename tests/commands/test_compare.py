"""The comparison of two variants of a run: agreement, planted differences, the yardstick."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.commands.compare import with_overrides
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.experiments.differences import Comparison, Difference, RoundDifference
from sbrrt_fast.experiments.lockstep import shift_one_ulp, train_in_lockstep
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import small_sample, tiny_backbone

TASKS = ("sst", "para", "sts")
KEY_BIASES = {f"encoder.encoder.layer.{i}.attention.self.key.bias" for i in range(2)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> RunConfig:
    """SBRRT with adversarial SMART, the teacher and dropout, in fp32 on a tiny encoder."""
    folder = tmp_path_factory.mktemp("compare")
    overrides = {
        "model.backbone": str(tiny_backbone(folder / "encoder")),
        "data_dir": str(small_sample(folder / "data", num_rows=21)),
        "output": str(folder / "run"),
        "tasks": list(TASKS),
        "epochs": 3,
        "round.batch_size": 5,
        "smart.weight": 1.0,
        "bregman.weight": 0.8,
        # So large that the student leaves its teacher by far more than rounding from the first
        # step on: D_Breg of nearly equal outputs has no 1e-4 in fp32 (see the last test).
        "optimizer.warmup": 0.0,
        "optimizer.learning_rate": 1e-3,
    }
    return load_config(None, overrides)


@pytest.fixture(scope="module")
def layouts(base) -> Comparison:
    padded, packed = (with_overrides(base, f"layout={name}", "") for name in ("padded", "packed"))
    return train_in_lockstep(padded, packed, 10, yardstick=True, log=quiet)


def quiet(line: str) -> None:
    """Takes a line for the user and drops it."""


def against(base: RunConfig, change: str, num_rounds: int = 2) -> Comparison:
    return train_in_lockstep(base, with_overrides(base, change, "--b"), num_rounds, log=quiet)


def test_padded_and_packed_are_the_same_run_with_dropout_on(layouts):
    strict = Comparison("", 0, ("a", "b"), layouts.losses, layouts.difference)
    assert all(bounds == [1e-4] * 10 for bounds in strict.loss_bounds().values())
    strict.assert_same()
    terms = {f"{task}/{term}" for task in TASKS for term in ("loss", "smart", "bregman", "total")}
    assert len(layouts.losses) == len(layouts.difference.rounds) == 10
    for losses in layouts.losses:
        assert losses["a"].keys() == losses["b"].keys() == terms
        assert all(losses["a"][f"{task}/smart"] > 0 for task in TASKS)
    assert layouts.losses[1]["a"]["sts/bregman"] > 0


def test_layouts_round_differently(layouts):
    """Otherwise the comparison above would be of a computation with itself."""
    assert 0 < layouts.difference.rounds[-1].weights < 1e-5


def test_differences_are_relative_to_the_larger_value(layouts):
    for found, losses in zip(layouts.difference.rounds, layouts.losses, strict=True):
        for name, value in found.losses.items():
            a, b = losses["a"][name], losses["b"][name]
            assert value == pytest.approx(abs(a - b) / max(abs(a), abs(b), 1e-30))


def test_key_biases_are_listed_apart(layouts):
    assert layouts.difference.vanishing == KEY_BIASES
    for found in layouts.difference.gradients.values():
        assert not KEY_BIASES & found.relative.keys()
        assert len(found.relative) > 30
        assert all(value < 1e-6 for value in found.vanishing.values())
    last = layouts.difference.rounds[-1]
    assert last.worst_tensor not in KEY_BIASES
    assert last.vanishing > 0.1 > last.worst  # Adam moves them at random


def test_the_yardstick_is_what_one_ulp_does(layouts):
    own = layouts.yardstick
    assert own is not None and len(own.rounds) == 10
    assert 2.0**-25 < own.rounds[0].weights < 1e-5
    assert own.rounds[-1].weights > own.rounds[0].weights
    factors = layouts.weight_factors()
    assert factors[-1] == pytest.approx(
        layouts.difference.rounds[-1].weights / own.rounds[-1].weights
    )
    layouts.assert_same(factor=4.0)
    with pytest.raises(AssertionError, match="times the yardstick"):
        layouts.assert_same(factor=factors[-1] / 2)


def test_one_ulp_moves_every_weight_and_the_teacher(base):
    moved, still = Trainer(base, quiet), Trainer(base, quiet)
    shift_one_ulp(moved)
    averages = moved.teacher.state_dict()
    for name, weight in still.model.named_parameters():
        up = torch.nextafter(weight, torch.full_like(weight, math.inf))
        assert torch.equal(moved.model.get_parameter(name), up)
        assert torch.equal(averages[name], up)


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ("optimizer.learning_rate=1.001e-3", "round 2"),
        ("model.hidden_dropout=0.1001", "gradient of sst"),
        ("smart.radius=0.0201", "smart"),
        ("bregman.weight=0.81", "total"),
        ("bregman.beta=0.9", "bregman"),
        ("smart.shared_dropout=false", "smart"),
        ("round.update=joint", "round 1"),
        ("precision=bf16", "gradient of"),
    ],
)
def test_a_planted_difference_is_caught(base, change, caught):
    found = against(base, change)
    assert any(caught in problem for problem in found.problems()), found.problems()
    with pytest.raises(AssertionError, match="differs by"):
        found.assert_same()


def test_dropout_of_another_seed_is_caught(base, monkeypatch):
    """The seed of dropout alone: weights and order of both variants stay the same."""
    runs = []
    original = Trainer.__init__

    def reseeded(self, config, *args):
        original(self, config, *args)
        runs.append(self)
        if len(runs) == 2:
            self.step.config = with_overrides(config, "seed=1", "")

    monkeypatch.setattr(Trainer, "__init__", reseeded)
    found = train_in_lockstep(base, base, 1, log=quiet)
    assert len(runs) == 2 and found.difference.rounds[0].losses["sst/loss"] > 1e-3
    with pytest.raises(AssertionError, match="round 1: sts/"):
        found.assert_same(gradient=math.inf)


def test_a_variant_against_itself_is_bit_identical(base):
    found = against(base, "")
    for difference in found.difference.rounds:
        assert set(difference.losses.values()) == {0.0}
        assert difference.weights == difference.worst == difference.vanishing == 0.0


def test_other_tasks_are_compared_in_the_tasks_of_both(base):
    found = against(base, "tasks=[sst]")
    assert found.unlike[:2] == (
        "tasks in a alone: para, sts",
        "each variant takes the rounds of its own tasks",
    )
    assert set(found.difference.gradients) == {"sst"}
    assert found.difference.gradients["sst"].worst[1] < 1e-4  # the same rows and weights
    terms = {f"sst/{term}" for term in ("loss", "smart", "bregman", "total")}
    assert all(set(r.losses) == terms for r in found.difference.rounds)
    assert found.difference.rounds[0].losses["sst/loss"] < 1e-6
    assert found.difference.rounds[0].weights > 1e-4
    assert set(found.losses[0]["a"]) > terms == set(found.losses[0]["b"])
    assert found.problems()[0] == "tasks in a alone: para, sts"
    text = found.text()
    assert "unlike:" in text and "sts/loss" in text and "same run up to" not in text


def test_a_task_of_a_run_of_several_has_the_rows_of_a_run_alone(base):
    """Else the losses of unlike variants would be of other rows."""
    a, b = (Trainer(with_overrides(base, change, ""), quiet) for change in ("", "tasks=[sts]"))
    first, second = (dict(run.order.next_round(run.order.start())[0])["sts"] for run in (a, b))
    assert list(first) == list(second)


def test_another_encoder_is_compared_in_what_has_its_shape(base, tmp_path):
    wide = tiny_backbone(tmp_path / "wide", hidden_size=64)
    found = against(base, f"model.backbone={wide}")
    (line,) = found.unlike
    assert "41 in a, 41 in b, of which 2 have one name and shape" in line
    assert set(found.difference.gradients["sst"].relative) == {"heads.sst.classifier.bias"}
    assert not found.difference.gradients["sts"].relative  # a cosine head has no weights
    assert "no tensor in common" in found.text()
    means = [sum(r[side]["sst/loss"] for r in found.losses) / 2 for side in "ab"]
    assert all(f"{mean:.4g}" in found.text() for mean in means)


def test_variants_without_a_weight_in_common_have_no_distance(base, tmp_path):
    wide = tiny_backbone(tmp_path / "wide", hidden_size=64)
    found = against(with_overrides(base, "tasks=[sts]", ""), f"model.backbone={wide}")
    assert all(r.weights is None for r in found.difference.rounds)
    assert "—" in found.text()
    json.dumps(found.to_dict(), allow_nan=False)


def test_loss_terms_of_one_side_are_named(base):
    found = against(base, "smart.weight=0,bregman.weight=0")
    terms = [f"{task}/{term}" for task in TASKS for term in ("smart", "bregman")]
    assert found.unlike == (f"loss terms in a alone: {', '.join(sorted(terms))}",)
    assert set(found.difference.rounds[0].losses).isdisjoint(terms)


def test_other_heads_and_modes_are_compared_in_the_rest(base):
    found = against(base, "mode=pretrain,tasks=[sst]")
    assert any("trained tensors: " in line for line in found.unlike)
    assert set(found.difference.gradients["sst"].relative) == {
        "heads.sst.classifier.weight",
        "heads.sst.classifier.bias",
    }


def test_variants_without_a_task_in_common_are_refused(base):
    with pytest.raises(ConfigError, match="share no task: one has sst, the other sts"):
        train_in_lockstep(
            *(with_overrides(base, f"tasks=[{name}]", "") for name in ("sst", "sts")), 1, log=quiet
        )


def test_more_rounds_than_the_run_has_are_refused(base):
    with pytest.raises(ConfigError, match="the run has 12 rounds, fewer than the 13 to compare"):
        against(base, "", num_rounds=13)


def test_a_loss_that_is_not_finite_stops_it(base):
    with pytest.raises(SbrrtError, match=r"round 1: gradient_norm is nan"):
        against(base, "optimizer.learning_rate=1e30", num_rounds=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layout=padded,seed=3", {"layout": "padded", "seed": 3}),
        ("optimizer.learning_rate=3e-5", {"optimizer.learning_rate": 3e-5}),
        ("smart.step_size=.inf,smart.norm=2", {"smart.step_size": math.inf, "smart.norm": "2"}),
        ("smart.shared_dropout=false", {"smart.shared_dropout": False}),
        ("rounds=null", {"rounds": None}),
        ("tasks.sst.weight=0.5", {"tasks.sst.weight": 0.5}),
    ],
)
def test_overrides(base, text, expected):
    config = with_overrides(base, text, "--a")
    for key, value in expected.items():
        place = config
        for name in key.split("."):
            place = place[name] if isinstance(place, dict) else getattr(place, name)
        assert place == value and type(place) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layout", "--a: 'layout' is not of the form key=value"),
        ("layuot=padded", "--a: unknown key 'layuot'; did you mean 'layout'"),
        ("layout=wide", "--a: layout: must be 'packed' or 'padded', got 'wide'"),
        ("seed.x=1", "--a: 'seed.x' is not a field; 'seed' has none"),
        ("smart.weight=-1", "smart.weight: must be at least 0"),
    ],
)
def test_overrides_that_cannot_be_used(base, text, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(base, text, "--a")


def flags(base: RunConfig, *more: str) -> list[str]:
    data, encoder = str(base.data_dir), base.model.backbone
    shared = ["--data-dir", data, "--backbone", encoder, "--round.batch-size", "5"]
    return ["compare", *shared, "--smart.weight", "1.0", *more]


def test_command(base, tmp_path, capsys):
    output = tmp_path / "deep" / "layouts.json"
    variants = ["--a", "layout=padded", "--b", "layout=packed"]
    code = main(flags(base, *variants, "--rounds", "2", "--ulp", "--output", str(output)))
    text = capsys.readouterr().out
    assert code == 0
    assert "a = layout=padded, b = layout=packed" in text
    assert "the same run up to rounding" in text and "key.bias" in text
    found = json.loads(output.read_text())
    assert found["labels"] == ["layout=padded", "layout=packed"]
    assert len(found["difference"]["rounds"]) == len(found["yardstick"]["rounds"]) == 2
    assert found["problems"] == []
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.parent.iterdir()) == ["layouts.json", "layouts.png"]


@pytest.mark.parametrize(("check", "code"), [(("--check",), 1), ((), 0)])
def test_command_with_a_difference(base, capsys, check, code):
    assert main(flags(base, "--b", "smart.radius=0.03", "--rounds", "1", *check)) == code
    text = capsys.readouterr().out
    assert "not the same run" in text and "round 1: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "0"), "--rounds: must be at least 1"),
        (("--rounds", "ten"), "'ten'; see `sbrrt-fast compare --help`"),
        (("--b", "smart.raduis=1"), "unknown key 'smart.raduis'; did you mean"),
    ],
)
def test_command_with_a_mistake(base, capsys, arguments, message):
    assert main(flags(base, *arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_command_refuses_an_unknown_flag(base, capsys):
    assert main(flags(base, "--lay-out", "packed")) == 2
    assert "unknown flag '--lay-out'; did you mean '--layout'" in capsys.readouterr().err


def test_no_run_folder_is_written(base, layouts):
    assert not Path(base.output).exists()


def test_a_term_below_resolution_is_judged_by_the_yardstick(base):
    """At a tiny learning rate one ulp moves D_Breg by more than 1e-4: no layout can do better."""
    slow = with_overrides(base, "optimizer.learning_rate=1e-6", "")
    padded = with_overrides(slow, "layout=padded", "")
    found = train_in_lockstep(padded, slow, 2, yardstick=True, log=quiet)
    looser = {name: b for name, b in found.loss_bounds().items() if max(b) > 1e-4}
    assert any(name.endswith("/bregman") for name in looser)
    assert all(name.endswith(("/bregman", "/smart")) for name in looser)  # divergences, not losses
    assert found.problems() == []
    strict = Comparison("", 0, ("a", "b"), found.losses, found.difference)
    assert any("/bregman" in problem for problem in strict.problems())
    assert "times what one ulp does" in found.text()


def rounds_of(name: str, values: list[float]) -> list[RoundDifference]:
    return [RoundDifference({name: value}, 0.0, "none", 0.0, 0.0) for value in values]


def compared(name: str, sizes: list[float], found: list[float], own: list[float]) -> Comparison:
    """Of a term of these sizes that differs by ``found``, and by ``own`` after one ulp."""
    losses = [{"a": {name: x}, "b": {name: x / 2}} for x in sizes]
    difference, yardstick = (Difference({}, rounds_of(name, x)) for x in (found, own))
    return Comparison("", 0, ("a", "b"), losses, difference, yardstick)


def test_bounds_of_a_divergence_go_with_its_root():
    """D_Breg of 1e-8 is resolved a thousand times more coarsely than one of 1e-2."""
    name, sizes, own = "para/bregman", [1e-8, 1e-4, 1e-2], [1e-4, 3e-5, 2e-6]
    bounds = compared(name, sizes, own, own).loss_bounds(loss=1e-6)[name]
    root = 3e-5 * 1e-2  # the most that one ulp does, times the root of D_Breg there
    assert bounds == pytest.approx([4 * root / 1e-4, 4 * root / 1e-2, 4 * root / 1e-1])
    assert compared(name, sizes, [0.01, 1e-4, 1e-5], own).problems(loss=1e-6) == []
    caught = compared(name, sizes, [0.01, 1e-4, 1e-4], own).problems(loss=1e-6)
    assert caught == ["round 3: para/bregman differs by 1.0e-04 > 1.2e-05"]


def test_bounds_of_other_terms_are_relative():
    name, sizes, own = "para/loss", [1e-8, 1e-4, 1e-2], [1e-4, 3e-5, 2e-6]
    assert compared(name, sizes, own, own).loss_bounds()[name] == pytest.approx([4e-4] * 3)


def test_a_divergence_that_is_zero_on_both_sides_has_a_bound():
    """In the first round the teacher is the student."""
    found = compared("sst/bregman", [0.0, 1e-4], [0.0, 0.0], [0.0, 1e-3])
    assert found.loss_bounds()["sst/bregman"] == pytest.approx([1e-4, 4e-3])
    assert found.problems() == []
