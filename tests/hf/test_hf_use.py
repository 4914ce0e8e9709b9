"""Models with the kernels are used as before: trained, adapted, compiled, copied, saved."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize

from sbrrt_fast import apply_sbrrt_kernels, remove_sbrrt_kernels
from sbrrt_fast.errors import ConfigError
from tests.hf.models import FAMILIES, batch, build, errors, loss_of, results, taken

F64 = torch.float64


def rows_of(inputs: dict) -> list[dict]:
    """The batch's examples, as a Trainer takes them."""
    count = len(inputs["labels"])
    return [{name: x[i] for name, x in inputs.items()} for i in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_five_steps_of_an_optimiser_give_the_same_losses(family):
    stock, inputs = build(family).double(), batch(family)
    losses = []
    for model in (taken(stock), stock):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses.append([])
        for _ in range(5):
            loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1][4] != losses[1][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


def train(model: nn.Module, folder, rows: list[dict], **options) -> list[float]:
    """Losses of five steps of a stock Trainer."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    settings = transformers.TrainingArguments(
        str(folder), max_steps=5, per_device_train_batch_size=4, logging_steps=1, seed=3,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
        **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_trainer_gives_the_same_losses(family, tmp_path):
    rows = rows_of(batch(family, (11, 5, 1, 8, 7, 9, 2, 11)))
    stock = build(family)
    fused = taken(stock)
    theirs, ours = train(stock, tmp_path / "a", rows), train(fused, tmp_path / "b", rows)
    assert len(theirs) == 5 and theirs[0] != theirs[4]
    assert ours == pytest.approx(theirs, rel=2e-4)  # the log has four digits


def test_a_trainer_with_bf16_and_checkpointing_trains(tmp_path):
    rows = rows_of(batch("bert", (11, 5, 1, 8)))
    options = {"bf16": True, "gradient_checkpointing": True}
    stock = build("bert")
    fused = taken(stock)
    theirs = train(stock, tmp_path / "a", rows, **options)
    ours = train(fused, tmp_path / "b", rows, **options)
    assert ours == pytest.approx(theirs, rel=0.02)


class LowRank(nn.Module):
    """A linear layer and a product of two thin ones."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, linear.in_features) / 8)
        self.up = nn.Parameter(torch.randn(linear.out_features, 4) / 8)

    def forward(self, x):
        return self.linear(x) + x @ self.down.T @ self.up.T


ADAPTED = ("query", "value", "dense", "q_lin", "v_lin", "out_lin", "lin1", "lin2")


def adapt(model: nn.Module) -> None:
    """Puts ``LowRank`` around linear layers of every kind, before or after the kernels."""
    torch.manual_seed(9)
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in ADAPTED and isinstance(child, nn.Linear):
                setattr(module, name, LowRank(child))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_before", [False, True])
def test_low_rank_adapters_count(family, is_before):
    stock = build(family)
    fused = copy.deepcopy(stock)
    adapt(stock)
    if is_before:
        adapt(fused)
    apply_sbrrt_kernels(fused)
    if not is_before:
        adapt(fused)
    ours, theirs = (results(m, batch(family), F64) for m in (fused, stock))
    assert sum(name.endswith(("up", "down")) for name in theirs) >= 20
    assert max(errors(ours, theirs).values()) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_and_parametrisations_of_linear_layers_count(family):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    def change(model: nn.Module) -> None:
        for name, module in model.base_model.named_modules():
            if not isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
                continue
            if ".0." in name and isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", Doubled())
            else:
                module.register_forward_hook(lambda module, args, output: output * 1.5)

    stock = build(family)
    fused = taken(stock)
    change(stock)
    change(fused)
    ours, theirs = (loss_of(m.double(), batch(family)) for m in (fused, stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)


def test_linear_layers_without_bias():
    stock = build("bert").double()
    for layer in stock.bert.encoder.layer:
        for module in (layer.output, layer.intermediate, layer.attention.output):
            module.dense.bias = None
    ours, theirs = (loss_of(m, batch("bert")) for m in (taken(stock), stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_come_padded_and_right(family):
    stock, inputs = build(family).double(), batch(family)
    fused = taken(stock)
    for model in (fused, stock):
        model.config.output_hidden_states = True
    theirs, ours = (m(**inputs).hidden_states for m in (stock, fused))
    real = inputs["attention_mask"].bool()
    assert len(ours) == len(theirs) == 3
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found[real], expected[real], rtol=1e-12, atol=1e-13)


def test_a_hook_on_a_layer_sees_padded_hidden_states():
    model, inputs, seen = taken(build("bert")), batch("bert"), []
    layer = model.bert.encoder.layer[0]
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with_hook = model(**inputs).logits
    handle.remove()
    assert seen == [(4, 11, 64)]
    torch.testing.assert_close(with_hook, model(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_leaves_the_model_as_it_was(family):
    stock, inputs = build(family), batch(family)
    model = taken(stock)
    model(**inputs)
    remove_sbrrt_kernels(model)
    for theirs, ours in zip(stock.modules(), model.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
    assert not model.base_model._forward_pre_hooks
    assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
    remove_sbrrt_kernels(model)  # nothing is left to do
    apply_sbrrt_kernels(model)
    torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits)


def test_a_class_that_has_changed_since_is_refused():
    model = taken(build("bert"))
    layer = model.bert.encoder.layer[0]
    layer.__class__ = type("ShardedLayer", (type(layer),), {})
    with pytest.raises(ConfigError, match=r"bert.encoder.layer.0 has become a ShardedLayer"):
        remove_sbrrt_kernels(model)
    assert type(model.bert.embeddings).__module__ == "sbrrt_fast.hf.bert"  # nothing has changed


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_parameters_and_classes_stay(family):
    stock = build(family)
    fused = taken(stock)
    assert list(fused.state_dict()) == list(stock.state_dict())
    kinds = [[type(m).__name__ for m in model.modules()] for model in (stock, fused)]
    assert kinds[0] == kinds[1]  # FSDP and device maps go by them


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_transformers_own(family, tmp_path):
    fused, inputs = taken(build(family)), batch(family)
    fused.save_pretrained(tmp_path)
    loaded = type(fused).from_pretrained(tmp_path)
    assert loaded.config.architectures == [type(fused).__name__]
    assert all("sbrrt" not in type(m).__module__ for m in loaded.modules())
    torch.testing.assert_close(fused(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_and_pickles_keep_the_kernels(family):
    model, inputs = taken(build(family)), batch(family)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    expected = model(**inputs).logits
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # a copy has nothing of the model's
    for other in copies:
        assert torch.equal(other(**inputs).logits, expected)
        assert "kernels=sbrrt_fast" in str(other)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_compiled_model_is_the_same(mode):
    stock, inputs = build("bert"), batch("bert")
    fused = getattr(taken(stock), mode)()
    compiled = torch.compile(fused, backend="aot_eager")
    for lengths in ((11, 5, 1, 8), (7, 3)):
        inputs = batch("bert", lengths)
        model_loss, loss = stock(**inputs).loss, compiled(**inputs).loss
        torch.testing.assert_close(loss, model_loss)
    loss.backward()
    stock(**inputs).loss.backward()
    for theirs, ours in zip(stock.parameters(), fused.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_an_export_traces_transformers_own_layers():
    stock = build("bert", "")
    inputs = batch("bert")
    call = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    program = torch.export.export(taken(stock), (), call, strict=False)
    found = program.module()(**call)
    torch.testing.assert_close(found.last_hidden_state, stock(**call).last_hidden_state)


def test_inference_mode_and_an_inner_model():
    """An encoder somewhere inside a module of one's own is found."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = build("bert", ""), build("roberta", "")

        def forward(self, left: dict, right: dict):
            pair = self.left(**left), self.right(**right)
            return torch.stack([x.last_hidden_state[:, 0] for x in pair])

    stock = Pair().eval()
    inputs = [{n: x for n, x in batch(f).items() if n != "labels"} for f in ("bert", "roberta")]
    fused = copy.deepcopy(stock)
    report = apply_sbrrt_kernels(fused)
    assert {"left.encoder", "right.encoder"} <= set(report.taken)
    with torch.inference_mode():
        torch.testing.assert_close(fused(*inputs), stock(*inputs))
