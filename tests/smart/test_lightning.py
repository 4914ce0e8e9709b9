"""The callback for Lightning: on a module that stands for its own, and on the real one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sbrrt_fast import SmartConfig, SmartRegularizer
from tests.smart.examples import example
from tests.smart.stock_models import bert, padded_batch

BATCH = {**padded_batch(), "labels": torch.tensor([0, 2, 1, 1])}
MODULE = "sbrrt_fast.smart.lightning"


@pytest.fixture
def smart_callback(monkeypatch):
    """``SmartCallback`` with a base class of ours, whether or not Lightning is there."""
    package, pytorch = ModuleType("lightning"), ModuleType("lightning.pytorch")
    pytorch.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).SmartCallback
    sys.modules.pop(MODULE, None)


class Module(torch.nn.Module):
    """What of a LightningModule the callback leans on."""

    automatic_optimization = True

    def __init__(self, result=lambda loss: loss):
        super().__init__()
        self.model, self.result, self.logged = bert().train(), result, {}

    def training_step(self, batch, batch_idx):
        ids, others = batch["input_ids"], {k: v for k, v in batch.items() if k != "input_ids"}
        return self.result(self.model(ids, **others).loss)

    def log(self, name, value):
        self.logged[name] = value


def step(module, callback, global_step=0):
    trainer = SimpleNamespace(global_step=global_step, log_every_n_steps=2)
    callback.on_fit_start(trainer, module)
    torch.manual_seed(6)
    result = module.training_step(BATCH, 0)
    callback.teardown(trainer, module, "fit")
    return result


def expected(module):
    torch.manual_seed(6)
    smart = SmartRegularizer.for_transformers(module.model)(**BATCH)
    return smart.model_output.loss, smart.loss


def test_r_s_is_added_and_logged(smart_callback):
    module = Module()
    total = step(module, smart_callback(SmartConfig(weight=3.0)))
    loss, smart = expected(module)
    torch.testing.assert_close(total, loss + 3.0 * smart)
    assert module.logged == {"smart": smart}
    step(module, smart_callback(), global_step=1)
    assert module.logged["smart_gain"] > 1
    torch.manual_seed(6)
    assert torch.equal(module.training_step(BATCH, 0), loss)


def test_a_fit_that_was_broken_off_leaves_the_module_as_it_was(smart_callback):
    module, callback = Module(), smart_callback()
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=0)
    callback.on_fit_start(trainer, module)
    callback.on_exception(trainer, module, KeyboardInterrupt())
    assert "training_step" not in vars(module)
    torch.testing.assert_close(step(module, callback), sum(expected(module)))


def test_a_step_may_return_a_dictionary_or_nothing(smart_callback):
    module = Module(lambda loss: {"loss": loss, "seen": 4})
    result = step(module, smart_callback())
    torch.testing.assert_close(result["loss"], sum(expected(module)))
    assert result["seen"] == 4
    assert step(Module(lambda loss: None), smart_callback()) is None


def test_what_it_cannot_do_is_refused(smart_callback):
    with pytest.raises(ValueError, match=r"smart\.weight is 0"):
        smart_callback(SmartConfig(weight=0.0))
    with pytest.raises(ValueError, match=r"Module\.encoder is no model; name the attribute"):
        step(Module(), smart_callback(model="encoder"))
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="the module optimises by itself"):
        step(module, smart_callback())


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ModuleNotFoundError, match="run `pip install lightning`"):
        importlib.import_module(MODULE)


def test_the_example_trains_minilm(minilm_dir, tmp_path, capsys):
    pytest.importorskip("lightning", reason="lightning is not installed; a stand-in runs above")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    main = example("smart_lightning").main
    trainer = main(str(minilm_dir), accelerator="cpu", default_root_dir=tmp_path, **options)
    assert trainer.global_step == 4 and trainer.callback_metrics["smart_gain"] > 10
    assert "R_s" in capsys.readouterr().out
    assert "training_step" not in vars(trainer.lightning_module)
