"""LoRA as an option of the trainer: what trains, what is saved, and a run that goes on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sbrrt_fast.api import load
from sbrrt_fast.cli import main
from sbrrt_fast.config import LoraConfig, RunConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model import lora as lora_module
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.lora import AdapterDropout, add_lora
from sbrrt_fast.training.build import build_step
from sbrrt_fast.training.step.optimizer import build_optimizer
from tests.helpers import small_sample, tiny_backbone, train_tiny
from tests.model.models import CONFIG, random_batch, random_model, stream_of
from tests.training.steps import PLAIN, is_written_out

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs peft: pip install -e '.[lora]'"
)
FLAGS = (
    *(
        "--lora.rank",
        "4",
        "--lora.dropout",
        "0.2",
        "--smart.weight",
        "1",
        "--bregman.weight",
        "0.5",
    ),
    *("--lora.targets", "query", "dense", "word_embeddings", "--optimizer.learning-rate", "0.01"),
    *("--log.every", "2", "--log.state-every", "3"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with data, backbone and ``run``, six rounds with adapters."""
    folder = tmp_path_factory.mktemp("lora")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    train_tiny(folder, *FLAGS, "--rounds", "6")
    return folder


@needs_peft
def test_a_saved_model_is_a_plain_one_with_adapters_merged(place):
    saved = load_file(place / "run" / "last" / "model.safetensors")
    before = load_file(place / "backbone" / "model.safetensors")
    assert saved.keys() == before.keys()
    changed = {name for name, x in saved.items() if not x.equal(before[name])}
    targets = ("query.weight", "dense.weight", "word_embeddings.weight")
    assert changed == {name for name in saved if name.endswith(targets)}
    for name in changed:
        change = saved[name] - before[name]
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 4, name
    assert load(place / "run").predict("sst", ["a joy to watch"]).values.shape == (1,)


@needs_peft
def test_a_state_has_the_adapters_and_the_teacher_s(place):
    state = load_file(place / "run" / "state" / "state.safetensors")
    names = {name for name in state if name.startswith("model.encoder.")}
    assert names
    assert all(".lora_" in name for name in names)
    averages = {name for name in state if name.startswith("teacher.encoder.")}
    assert {n.removeprefix("model.") for n in names} == {
        n.removeprefix("teacher.") for n in averages
    }


@needs_peft
def test_a_resumed_run_is_the_same(place, tmp_path):
    run = tmp_path / "run"
    inputs = ["--data-dir", str(place / "data"), "--backbone", str(place / "backbone")]
    short = ["--rounds", "3", "--round.batch-size", "4", "--log.no-tensorboard"]
    flags = ["--optimizer.decay", "constant", "--optimizer.warmup", "0"]
    train_tiny(place, *FLAGS, *flags, "--rounds", "6", "--output", str(tmp_path / "whole"))
    assert main(["train", *inputs, *short, *FLAGS, *flags, "--output", str(run)]) == 0
    assert main(["train", "--output", str(run), "--resume", "--rounds", "6"]) == 0
    for file in ("model.safetensors", "heads.safetensors"):
        a, b = (load_file(folder / "last" / file) for folder in (tmp_path / "whole", run))
        assert all(a[name].equal(b[name]) for name in a)


@needs_peft
def test_the_step_says_why_it_is_autograd_s(place, tmp_path, capsys):
    train_tiny(place, "--lora.rank", "2", "--rounds", "1", "--output", str(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "the step runs under autograd, which is slower: LoRA's adapters are differ" in printed


@needs_peft
def test_dropout_of_adapters_follows_the_pass():
    encoder, batch = MiniBert(CONFIG).eval(), random_batch([5, 9])
    add_lora(encoder, LoraConfig(rank=3, dropout=0.5, targets=("query", "dense")), seed=1)
    for name, p in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    x = torch.randn(14, CONFIG.hidden_size)
    same = [encoder.encode(x, batch, stream_of(batch)) for _ in range(2)]
    other = encoder.encode(x, batch, stream_of(batch, step=4))
    assert torch.equal(*same)
    assert not torch.allclose(same[0], other)
    drops = [m for m in encoder.modules() if isinstance(m, AdapterDropout)]
    assert len({m.site for m in drops}) == len(drops) == 4 * CONFIG.num_hidden_layers
    encoder.encode(x, batch)
    assert all(m.stream is None for m in drops)


@needs_peft
def test_adapters_begin_with_no_effect_and_repeat_by_seed():
    batch = random_batch([4, 6])
    torch.manual_seed(0)
    encoder = MiniBert(CONFIG).eval()
    x = encoder.embed(batch)
    before, state = encoder.encode(x, batch), torch.get_rng_state()
    add_lora(encoder, LoraConfig(rank=3), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(encoder.encode(x, batch), before, rtol=0, atol=1e-6)
    again = MiniBert(CONFIG)
    add_lora(again, LoraConfig(rank=3), seed=1)
    adapters = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 2 * CONFIG.num_hidden_layers
    assert all(p.equal(again.get_parameter(name)) for name, p in adapters.items())


def test_without_peft_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(lora_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lora\.rank: adapters need the library peft; run"):
        add_lora(MiniBert(CONFIG), LoraConfig(rank=1), seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": -1}, "lora.rank: must be at least 0"),
        ({"alpha": 0.0}, "lora.alpha: must be above 0"),
        ({"dropout": 1.0}, "lora.dropout: must be"),
        ({"targets": ()}, "lora.targets: must be one or several of query, key"),
        ({"targets": ("querry",)}, "lora.targets: must be one or several of query, key"),
        ({"targets": ("key", "key")}, "lora.targets: must be names that are each given once"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(lora=LoraConfig(**values))


def test_adapters_of_a_frozen_encoder_are_refused():
    with pytest.raises(ConfigError, match=r"lora\.rank: must be 0 with mode 'pretrain'"):
        RunConfig(mode="pretrain", lora=LoraConfig(rank=2))


def test_a_step_of_changed_modules_is_autograd_s():
    """Written-out passes read weights, and would miss the hook."""
    model, lines = random_model(), []
    handle = model.encoder.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)
    parts = model, None, build_optimizer(model.named_parameters(), PLAIN.optimizer), PLAIN, 3
    assert not is_written_out(build_step(*parts, log=lines.append, max_length=9))
    reason = "encoder.encoder.layer.0.output.dense has hooks"
    assert lines[0] == f"the step runs under autograd, which is slower: {reason}"
    handle.remove()
    assert is_written_out(build_step(*parts, log=lines.append, max_length=9))
