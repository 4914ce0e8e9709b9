"""The mixin for transformers' Trainer: on a base that computes as it does, and on the real one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from sbrrt_fast import SmartConfig, SmartRegularizer
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.smart.trainer import SmartTrainerMixin
from tests.smart.examples import example
from tests.smart.stock_models import bert, padded_batch

pytest.importorskip("transformers")

BATCH = {**padded_batch(), "labels": torch.tensor([0, 2, 1, 1])}


class Base:
    """What of Trainer the mixin leans on; Trainer itself needs accelerate."""

    loss_is_scaled_for_ga = compute_loss_func = None
    model_accepts_loss_kwargs = False
    current_gradient_accumulation_steps = 4

    def __init__(self, global_step=0):
        self.state = SimpleNamespace(logging_steps=2, global_step=global_step)
        self.logged = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, start_time=None):
        self.logged.append(logs)


class SmartBase(SmartTrainerMixin, Base):
    pass


def losses(trainer, model, **options):
    torch.manual_seed(6)
    return trainer.compute_loss(model, dict(BATCH), **options)


def test_r_s_is_added_in_training_alone():
    model = bert().train()
    trainer = SmartBase(smart=SmartConfig(weight=3.0))
    total, outputs = losses(trainer, model, return_outputs=True)
    torch.manual_seed(6)
    smart = SmartRegularizer.for_transformers(model)(**BATCH)
    torch.testing.assert_close(total, outputs.loss + 3.0 * smart.loss)
    model.eval()
    assert torch.equal(losses(trainer, model), model(**BATCH).loss)
    assert losses(trainer, model, return_outputs=True)[1].logits.shape == (4, 3)


@pytest.mark.parametrize(
    ("accepts", "num_items", "func", "scaled", "parts"),
    [
        (False, None, None, None, 1),
        (True, None, None, None, 1),
        (True, 4, None, None, 4),
        (False, None, len, None, 4),
        (True, 4, None, False, 1),
        (False, None, None, True, 4),
    ],
)
def test_r_s_is_divided_where_the_trainer_does_not(accepts, num_items, func, scaled, parts):
    trainer = SmartBase()
    trainer.model_accepts_loss_kwargs, trainer.compute_loss_func = accepts, func
    trainer.loss_is_scaled_for_ga = scaled
    model = bert().train()
    total, outputs = losses(trainer, model, return_outputs=True, num_items_in_batch=num_items)
    torch.manual_seed(6)
    smart = SmartRegularizer.for_transformers(model)(**BATCH)
    torch.testing.assert_close(total, outputs.loss + smart.loss / parts)


def test_r_s_and_its_gain_are_logged():
    trainer, model = SmartBase(), bert().train()
    losses(trainer, model)
    trainer.log({"loss": 1.0})
    trainer.state.global_step = 1
    losses(trainer, model)
    trainer.log({"loss": 1.0})
    trainer.log({"eval_loss": 1.0})
    first, second, evaluation = trainer.logged
    assert first["smart"] > 0 and "smart_gain" not in first and second["smart_gain"] > 1
    assert evaluation == {"eval_loss": 1.0}


def test_a_weight_of_0_or_a_setting_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"smart\.weight is 0"):
        SmartBase(smart=SmartConfig(weight=0.0))
    with pytest.raises(ConfigError, match=r"smart\.radius: must be above 0"):
        SmartBase(smart=SmartConfig(weight=1.0, radius=-1.0))


def test_minilm_in_a_stock_trainer_is_attacked(minilm_dir, tmp_path):
    """With torch's attention, in train mode."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    trainer = example("smart_trainer").main(str(minilm_dir), str(tmp_path))
    assert trainer.model.config._attn_implementation == "sdpa"
    rows = [row for row in trainer.state.log_history if "smart" in row]
    gains = [row["smart_gain"] for row in rows]
    assert len(rows) == 4 and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["bregman"] == 0 and all(row["bregman"] > 0 for row in rows[1:])
    assert math.exp(sum(map(math.log, gains)) / len(gains)) > 10
