"""Models that the fused ops cannot take: ``auto`` does what the reference does, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sbrrt_fast.cli import main
from sbrrt_fast.config import (
    BregmanConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RoundConfig,
    RunConfig,
    SmartConfig,
)
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.errors import BackendError
from sbrrt_fast.experiments.lockstep import train_in_lockstep
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.io import load_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops._backend.dispatch import Op
from sbrrt_fast.ops.registry import OPS
from sbrrt_fast.training.scores.evaluate import evaluate, predict
from sbrrt_fast.training.step.op_choice import (
    check_calls,
    choice_lines,
    step_calls,
    written_out_why_not,
)
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import small_sample, tiny_backbone, train_tiny
from tests.training.steps import is_written_out

# hidden, head_dim, intermediate
SHAPES = {
    "head dim 16": (32, 16, 64),
    "head dim 26, as TinyBERT's": (52, 26, 200),
    "head dim 48": (48, 48, 96),
    "head dim 128": (128, 128, 130),
    "width 30": (30, 30, 61),
    "width 33": (33, 11, 7),
    "width 1": (1, 1, 1),
}
LONG = 600  # words
IN_PASSES = "embed, dropout_add_layernorm, bias_gelu"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> RunConfig:
    return RunConfig(
        recipe="test",
        data_dir=small_sample(tmp_path_factory.mktemp("fallback") / "data", 6),
        rounds=3,
        seed=3,
        smart=SmartConfig(weight=1.0, radius=0.1),
        bregman=BregmanConfig(weight=0.8),
        optimizer=OptimizerConfig(warmup=0.0),
        round=RoundConfig(batch_size=2),
        log=LogConfig(every=1, state_every=0, tensorboard=False),
    )


def of_shape(config: RunConfig, folder: Path, shape: str) -> RunConfig:
    hidden, head_dim, intermediate = SHAPES[shape]
    sizes = {"hidden_size": hidden, "head_dim": head_dim, "intermediate_size": intermediate}
    backbone = tiny_backbone(folder / "backbone", **sizes)
    return replace(config, model=ModelConfig(backbone=str(backbone)))


def of_length(config: RunConfig, folder: Path, split: str | None) -> RunConfig:
    """1,024 positions; the split's last text of SST is made a long one."""
    backbone = tiny_backbone(folder / "backbone", num_layers=1, max_length=1024)
    data = small_sample(folder / "data", 6)
    if split:
        path = data / BUILTIN_TASKS["sst"].files[split]
        *others, last = path.read_text(encoding="utf-8").splitlines()
        number, name, _, *label = last.split("\t")
        words = " ".join(["good"] * LONG)
        path.write_text("\n".join([*others, "\t".join([number, name, words, *label])]) + "\n")
    model = ModelConfig(backbone=str(backbone), max_length=1024)
    return replace(config, data_dir=data, model=model)


def trainer(config: RunConfig, **fields) -> tuple[Trainer, list[str]]:
    lines: list[str] = []
    return Trainer(replace(config, **fields), lines.append), lines


def told(lines: list[str]) -> list[str]:
    return [
        line for line in lines if "step runs" in line or ": cpu" in line or "attention:" in line
    ]


def assert_same_run(config: RunConfig) -> None:
    configs = (replace(config, backend=name) for name in ("reference", "auto"))
    train_in_lockstep(*configs, 3, yardstick=True, log=lambda line: None).assert_same()


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_train_as_on_the_reference(base, tmp_path, shape):
    config = of_shape(base, tmp_path, shape)
    assert_same_run(config)
    ours, lines = trainer(config)
    assert not is_written_out(ours.step)
    step, others, attention = told(lines)
    assert step.endswith("which is slower: attention cannot run on cpu here")
    assert others.startswith(f"{IN_PASSES}, smart_noise, smart_ascend, symmetric_kl, ")
    assert others.endswith(": cpu")
    heads = SHAPES[shape][0] // SHAPES[shape][1]
    reason = f"the head dimension, {SHAPES[shape][0]} / {heads}, is neither 32 nor 64"
    assert attention == f"attention: reference (cpu: {reason})"


class OpNames(TorchDispatchMode):
    """Notes the extension's ops that run."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sbrrt":
            self.names.add(func._schema.name.removeprefix("sbrrt::"))
        return func(*args, **(kwargs or {}))


def test_attention_alone_leaves_the_cpu_s_ops(base, tmp_path):
    ours, _ = trainer(of_shape(base, tmp_path, "head dim 48"))
    batches, _ = ours.order.next_round(ours.progress.cursor)
    with OpNames() as ran:
        ours.step.round_of(ours.shares.works(batches), 0)
    assert not any(name.startswith("attention") for name in ran.names)
    for name in ("embed", "dropout_add_layernorm", "bias_gelu"):
        assert {f"{name}_forward_into", f"{name}_backward_into"} <= ran.names
    fused = {"smart_noise_into", "smart_ascend_into", "symmetric_kl_fisher_into", "adamw_ema_"}
    assert fused <= ran.names


def test_a_width_that_is_taken_stays_written_out(base, tmp_path):
    sizes = {"hidden_size": 96, "head_dim": 32, "intermediate_size": 61}
    backbone = tiny_backbone(tmp_path / "backbone", **sizes)
    config = replace(base, model=ModelConfig(backbone=str(backbone)))
    assert_same_run(config)
    ours, lines = trainer(config, backend="cpu")
    assert is_written_out(ours.step)
    assert told(lines) == []


def test_bf16_runs_as_on_the_reference(base, tmp_path):
    config = replace(of_shape(base, tmp_path, "head dim 26, as TinyBERT's"), precision="bf16")
    found = []
    for backend in ("auto", "reference"):
        ours, _ = trainer(config, backend=backend)
        batches, _ = ours.order.next_round(ours.progress.cursor)
        found.append(ours.step.round_of(ours.shares.works(batches), 0))
    for name, value in found[1].items():
        if name.endswith("/loss"):
            assert found[0][name].item() == pytest.approx(value.item(), rel=2e-2), name


def test_long_texts_train_as_on_the_reference(base, tmp_path):
    config = of_length(base, tmp_path, "train")
    assert_same_run(replace(config, tasks={"sst": config.tasks["sst"]}))
    ours, lines = trainer(config)
    assert not is_written_out(ours.step)
    step, others, attention = told(lines)
    assert step.endswith("; --model.max-length 512 would cut longer texts and be faster")
    assert others.startswith(IN_PASSES)
    assert attention == (
        "attention: cpu, but reference for a batch with a text of more than 512 tokens "
        "(cpu: max_length is 602, above 512)"
    )
    short, lines = trainer(config, model=replace(config.model, max_length=512))
    assert is_written_out(short.step)
    assert told(lines) == []


def test_many_positions_alone_cost_nothing(base, tmp_path):
    config = of_length(base, tmp_path, None)
    assert_same_run(config)
    ours, lines = trainer(config)
    assert is_written_out(ours.step)
    assert told(lines) == []


def test_longer_texts_may_come_after_training(base, tmp_path):
    """A dev text is longer than those that the written-out step was built for."""
    config = of_length(base, tmp_path, "dev")
    ours, lines = trainer(config, output=tmp_path / "run")
    assert is_written_out(ours.step)
    others, attention = told(lines)
    assert others == f"evaluation: {IN_PASSES}: cpu"
    assert "evaluation: attention: cpu, but reference for a batch with a text" in attention
    ours.run()
    found = predict(ours.model, ours.dev_tasks["sst"])
    ours.model.encoder.set_backend("reference")
    assert torch.equal(found, predict(ours.model, ours.dev_tasks["sst"]))
    assert evaluate(ours.model, ours.dev_tasks)["overall"] <= 1


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_named_backend_refuses_long_texts_before_it_starts(base, tmp_path, split):
    config = of_length(base, tmp_path, split)
    with pytest.raises(BackendError) as caught:
        trainer(config, backend="cpu", output=tmp_path / "run")
    assert str(caught.value) == (
        "backend 'cpu' cannot run this model (attention: max_length is 602, above 512); use "
        "--backend auto or reference, or --model.max-length 512"
    )
    assert not (tmp_path / "run").exists()
    ours, _ = trainer(config, backend="cpu", model=replace(config.model, max_length=512))
    assert is_written_out(ours.step)


@pytest.mark.parametrize("shape", ["head dim 16", "width 33"])
def test_a_named_backend_refuses_a_shape_before_it_starts(base, tmp_path, shape):
    config = of_shape(base, tmp_path, shape)
    with pytest.raises(BackendError, match=r"cannot run this model \(attention: the head dim"):
        trainer(config, backend="cpu")
    padded, lines = trainer(config, backend="cpu", layout="padded")  # attention has no choice there
    assert "padding" in told(lines)[0]
    batches, _ = padded.order.next_round(padded.progress.cursor)
    assert padded.step.round_of(padded.shares.works(batches), 0)["sst/total"].isfinite()


def test_evaluate_and_predict_say_it_and_equal_the_reference(base, tmp_path, capsys):
    config = of_shape(base, tmp_path, "width 30")
    run = train_tiny(tmp_path, "--backbone", config.model.backbone, "--log.no-tensorboard")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = "attention: reference (cpu: the head dimension, 30 / 1, is neither 32 nor 64)"
    assert lines.count(line) == 2  # once a command
    written = (run / "predictions" / "sts-dev-output.csv").read_text().splitlines()[1:]
    model, _ = load_model(run / "best")
    model.encoder.set_backend("reference")
    ours, _ = trainer(replace(config, data_dir=tmp_path / "data"))
    expected = predict(model, ours.dev_tasks["sts"])
    found = torch.tensor([float(row.split(" , ")[1]) for row in written])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


# A GPU that is not there: fake tensors have its name, and every kernel is built.


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(Op, "missing", lambda self, implementation: None)
    monkeypatch.setattr("sbrrt_fast.ops._backend.backends.INTERPRETED", False)
    for op in OPS:  # where Triton is not interpreted, it comes before the reference
        order = sorted(op.implementations, key=lambda i: i.backend == "reference")
        monkeypatch.setitem(op._candidates, "auto", order)
    with FakeTensorMode():
        yield torch.device("cuda")


def gpu_calls(config: RunConfig, longest: int = 100, tasks=None, **shape):
    sizes = {"vocab_size": 11, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertConfig(**{**sizes, "num_hidden_layers": 1, **shape})
    with torch.device("meta"):
        model = MultiTaskModel(MiniBert(bert, "mean"), tasks or config.tasks)
    for module in model.modules():
        for name, p in module._parameters.items():
            fake = torch.empty(p.shape, device="cuda")
            module._parameters[name] = torch.nn.Parameter(fake)
    return step_calls(model, config, longest)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_takes_ordinary_models(base, gpu, precision):
    calls = gpu_calls(replace(base, precision=precision))
    for backend in ("auto", "cuda", "triton"):
        check_calls(calls, backend)
        assert written_out_why_not(calls, backend, gpu) is None
    assert choice_lines(calls, "auto", gpu) == []


def test_a_gpu_s_attention_is_the_reference_s_for_other_heads(base, gpu):
    calls = gpu_calls(base, hidden_size=52)
    reason = "the head dimension, 52 / 2, is neither 32 nor 64"
    for backend in ("cuda", "triton"):
        with pytest.raises(BackendError, match=rf"'{backend}' cannot run .*attention: {reason}\)"):
            check_calls(calls, backend)
    assert "attention cannot run on cuda" in written_out_why_not(calls, "auto", gpu)
    lines = choice_lines(calls, "auto", gpu)
    assert lines[1] == f"attention: reference (cuda: {reason}; triton: {reason})"


def test_a_gpu_s_wide_rows_go_to_triton_and_then_to_the_reference(base, gpu):
    calls = gpu_calls(base, hidden_size=4096, num_attention_heads=64)
    with pytest.raises(BackendError, match=r"embed: word has 4096 .*layernorm: x has 4096"):
        check_calls(calls, "cuda")
    check_calls(calls, "triton")
    lines = choice_lines(calls, "auto", gpu)
    assert "embed: triton (cuda: word has 4096 features, above 2048)" in lines
    wider = gpu_calls(base, hidden_size=8256, num_attention_heads=129)
    with pytest.raises(BackendError, match=r"embed: .*layernorm: .*smart_ascend: delta has 8256"):
        check_calls(wider, "triton")
    lines = choice_lines(wider, "auto", gpu)
    assert lines[0].startswith("embed: reference (cuda: word has 8256 features, above 2048; triton")


def test_a_gpu_s_many_classes(base, gpu):
    task = TaskConfig({}, ("text",), "label", "classes", num_classes=5000)
    calls = gpu_calls(base, tasks={"many": task})
    check_calls(calls, "cuda")
    with pytest.raises(BackendError, match=r"symmetric_kl: 5000 classes are above 4096"):
        check_calls(calls, "triton")


# Noise


def batch_of(lengths: list[int], first_row: int = 0) -> TokenBatch:
    ids = torch.ones(sum(lengths), dtype=torch.int64)
    rows = torch.arange(first_row, first_row + len(lengths))
    return TokenBatch.from_packed(ids, ids * 0, ids > 1, torch.tensor(lengths), rows)


@pytest.mark.parametrize("width", [1, 7, 30, 33])
def test_noise_of_any_width_is_normal_and_a_function_of_its_place(width):
    rng = torch.tensor([5, 2])
    whole = DropoutStream(batch_of([9] * 400), rng, 16).normal(width)
    assert whole.shape == (3600, width)
    count = whole.numel()
    assert abs(whole.mean()) < 5 / count**0.5
    assert abs(whole.var() - 1) < 5 * (2 / count) ** 0.5
    neighbours = whole.flatten()
    assert abs((neighbours[1:] * neighbours[:-1]).mean()) < 5 / count**0.5
    alone = DropoutStream(batch_of([9], 7), rng, 16).normal(width)
    assert torch.equal(alone, whole[63:72])
    reference = DropoutStream(batch_of([9], 7), rng, 16, backend="reference").normal(width)
    assert torch.allclose(alone, reference, rtol=1e-6, atol=1e-7)


def test_triton_refuses_a_run_before_it_starts(tmp_path):
    backbone = tiny_backbone(tmp_path / "backbone", hidden_size=48, head_dim=24)
    config = RunConfig(
        data_dir=small_sample(tmp_path / "data", 12),
        model=ModelConfig(backbone=str(backbone)),
        output=tmp_path / "run",
    )
    reason = "attention: the head dimension, 48 / 2, is neither 32 nor 64"
    with pytest.raises(BackendError, match=rf"^backend 'triton' cannot run .*\({reason}\); use"):
        Trainer(replace(config, backend="triton", rounds=1), log=lambda line: None)
    assert not (tmp_path / "run").exists()
