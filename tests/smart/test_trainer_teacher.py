"""The momentum teacher in transformers' Trainer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sbrrt_fast import BregmanConfig, SmartRegularizer
from sbrrt_fast.errors import WeightsError
from tests.smart.processes import apart, noise_of_examples
from tests.smart.stock_models import bert

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

from transformers import TrainerCallback

from sbrrt_fast.smart.trainer_teacher import FILE, TrainerTeacher
from tests.smart.trainers import SmartTrainer, rows, smart_trainer

BREGMAN = BregmanConfig(weight=0.8, beta=0.75)


class Watcher(TrainerCallback):
    """The weights before training and after each optimiser step."""

    def __init__(self):
        self.history = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.history = [weights(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.history.append(weights(model))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def averages(trainer) -> dict[str, torch.Tensor]:
    return {n: x.clone() for n, x in trainer._bregman.teacher.state_dict().items()}


def expected_averages(history, beta=BREGMAN.beta):
    average = dict(history[0])
    for student in history[1:]:
        average = {n: torch.lerp(x, student[n], 1.0 - beta) for n, x in average.items()}
    return average


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name


@pytest.mark.parametrize("parts", [1, 2])
def test_the_teacher_moves_once_per_optimiser_step(tmp_path, parts):
    """With accumulation, evaluations and saves between."""
    watcher = Watcher()
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    settings |= {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
    trainer = smart_trainer(bert().train(), tmp_path, BREGMAN, [watcher], **settings)
    trainer.train()
    assert len(watcher.history) == 5
    assert_equal(averages(trainer), expected_averages(watcher.history))
    saved = load_file(tmp_path / "checkpoint-3" / FILE)
    assert_equal(saved, expected_averages(watcher.history[:4]))
    trained = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["smart"] > 0 and row["bregman"] > 0 for row in trained)
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(evaluated) == 4 and not any("bregman" in row for row in evaluated)
    trainer.train()  # begins anew
    assert_equal(averages(trainer), expected_averages(watcher.history))


def test_the_paper_s_schedule_is_of_the_trainer_s_steps(tmp_path):
    watcher = Watcher()
    config = BregmanConfig(weight=1.0, schedule="paper")
    trainer = smart_trainer(bert().train(), tmp_path, config, [watcher], max_steps=3)
    trainer.train()
    assert_equal(averages(trainer), expected_averages(watcher.history, 0.999))


@pytest.mark.parametrize("parts", [1, 3])
def test_d_breg_has_the_clean_pass_s_masks_and_is_weighted(tmp_path, parts):
    trainer = smart_trainer(bert().train(), tmp_path, BREGMAN)
    trainer.train()
    model, teacher = trainer.model.train(), trainer._bregman.teacher
    batch = {name: torch.stack([row[name] for row in rows()[:4]]) for name in rows()[0]}
    trainer.current_gradient_accumulation_steps = parts
    trainer.loss_is_scaled_for_ga = parts > 1
    torch.manual_seed(6)
    total = trainer.compute_loss(model, dict(batch))
    torch.manual_seed(6)
    smart = SmartRegularizer.for_transformers(model)(**batch)
    bregman = teacher.loss(smart.logits, random_state=smart.random_state, **batch)
    assert bregman > 1e-4
    added = (smart.loss + BREGMAN.weight * bregman) / parts
    torch.testing.assert_close(total, smart.model_output.loss + added)
    assert torch.equal(trainer.compute_loss(model.eval(), dict(batch)), model(**batch).loss)


@pytest.mark.parametrize(
    "settings", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings):
    """Bit for bit, with dropout."""
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, **settings}
    whole = smart_trainer(bert().train(), tmp_path / "whole", BREGMAN, **options)
    whole.train()
    resumed = smart_trainer(bert().train(), tmp_path / "resumed", BREGMAN, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert_equal(weights(resumed.model), weights(whole.model))
    assert_equal(averages(resumed), averages(whole))
    last = [t.state.log_history[-2]["bregman"] for t in (whole, resumed)]
    assert last[0] == last[1] > 0


def test_accumulated_batches_are_one_batch(tmp_path, monkeypatch):
    noise_of_examples(monkeypatch.setattr)
    trained = []
    for parts in (1, 2):
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        settings = {"per_device_train_batch_size": 4 // parts, "optim": "sgd"}
        settings["gradient_accumulation_steps"] = parts
        trainer = smart_trainer(model, tmp_path, BREGMAN, **settings)
        trainer.train()
        trained.append([[*weights(model).values()], [*averages(trainer).values()]])
    initial = [p.detach() for p in bert().parameters()]
    for whole, parts in zip(*trained, strict=True):
        assert apart(parts, whole) < 2e-3 * apart(whole, initial)


def test_adapters_have_a_teacher_of_their_own(tmp_path):
    """Checkpoints hold what is trained alone, of the model and of the teacher."""
    peft = pytest.importorskip("peft")

    def adapted():
        model = bert().train()
        torch.manual_seed(1)
        names = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
        return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_dropout=0.1, **names))

    whole = smart_trainer(adapted(), tmp_path / "whole", BREGMAN)
    whole.train()
    resumed = smart_trainer(adapted(), tmp_path / "resumed", BREGMAN)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    trained = {n for n, p in whole.model.named_parameters() if p.requires_grad}
    assert averages(whole).keys() == trained and len(trained) == 10
    assert_equal(weights(resumed.model), weights(whole.model))
    assert_equal(averages(resumed), averages(whole))


def test_a_log_changes_nothing(tmp_path):
    """The random direction that the gain is over is drawn aside."""
    trained = []
    for every in (1, 5):
        trainer = smart_trainer(bert().train(), tmp_path, BREGMAN, logging_steps=every)
        trainer.train()
        trained.append(weights(trainer.model))
    assert_equal(*trained)


def test_a_skipped_step_moves_nothing(tmp_path):
    trainer = smart_trainer(bert().train(), tmp_path, BREGMAN)
    trainer.train()
    before = averages(trainer)
    trainer.accelerator = SimpleNamespace(optimizer_step_was_skipped=True)
    trainer._bregman.on_step_end(trainer.args, trainer.state, None)
    assert_equal(averages(trainer), before)
    trainer.accelerator.optimizer_step_was_skipped = False
    trainer._bregman.on_step_end(trainer.args, trainer.state, None)
    assert not torch.equal(averages(trainer)["classifier.weight"], before["classifier.weight"])


def test_a_checkpoint_without_a_teacher_is_refused(tmp_path):
    trainer = smart_trainer(bert().train(), tmp_path, BREGMAN, save_only_model=True)
    trainer.train()
    assert not list(tmp_path.rglob(FILE))
    with pytest.raises(WeightsError, match=rf"checkpoint-3/{FILE}: is missing, so .* begin anew"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_what_it_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"bregman\.weight is 0; give BregmanConfig\(weight=0.8\)"):
        smart_trainer(bert(), tmp_path, BregmanConfig())
    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    with pytest.raises(ValueError, match="averages whole weights; train without FSDP"):
        TrainerTeacher(sharded, BREGMAN)
    trainer = smart_trainer(bert(), tmp_path, BREGMAN)
    with pytest.raises(ValueError, match=r"begins with trainer\.train\(\)"):
        trainer.compute_loss(trainer.model.train(), {n: x[None] for n, x in rows()[0].items()})
    assert isinstance(trainer, SmartTrainer)
