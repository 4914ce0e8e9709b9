"""The step's device code without a device: nothing waits or mixes, and the bits are the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pretended_gpu import PretendedGpu
from sbrrt_fast.pretraining.config import PretrainConfig
from sbrrt_fast.pretraining.passes import WrittenOutPasses
from sbrrt_fast.pretraining.step import PretrainStep, build_step
from tests.pretraining.runs import tiny_batch, tiny_model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_step_does_not_wait_for_a_gpu(tmp_path, precision, pooling):
    config = PretrainConfig(precision=precision, head_rounds=1)

    def build(device: str) -> PretrainStep:
        model = tiny_model(tmp_path / device, next_sentence=True, pooling=pooling)
        model.set_dropout(0.1, 0.1)
        step = build_step(model.to(device), config, 10, pytest.fail)
        assert isinstance(step.passes, WrittenOutPasses)
        return step

    def outcome(step: PretrainStep) -> list[dict[str, torch.Tensor]]:
        return [*(step.round(batch, index) for index in range(3)), step.model.state_dict()]

    step = build("cpu")
    batch = tiny_batch(tmp_path / "cpu", next_sentence=True)
    expected = outcome(step)
    with PretendedGpu() as gpu:
        step = build("cuda")
        with gpu.no_waits():
            found = outcome(step)
        found = [{name: gpu.value(x) for name, x in part.items()} for part in found]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
