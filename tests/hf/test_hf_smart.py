"""SMART and the teacher around models with the kernels: as around stock ones."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast import MomentumTeacher, SmartConfig, SmartRegularizer
from tests.hf.models import FAMILIES, WIDTH, batch, build, taken, with_dropout
from tests.smart.stock_models import cosine, weight_gradient

CONFIG = SmartConfig(radius=1e-2)
LENGTHS = (11, 5, 4, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_r_s_is_that_of_the_stock_model(family):
    stock, inputs = build(family), batch(family, LENGTHS)
    width = getattr(stock.config, "embedding_size", WIDTH)
    noise, results = torch.randn(len(LENGTHS), max(LENGTHS), width), []
    for model in (stock, taken(stock)):
        smart = SmartRegularizer.for_transformers(model, CONFIG)(**inputs, noise=noise)
        assert smart.jacobian == "forward"
        results.append((smart.loss, smart.delta, weight_gradient(smart.loss, model)))
    (theirs, *exact), (ours, *found) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
    assert all(cosine(x, y) > 0.9999 for x, y in zip(found, exact, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_masks_are_replayed(family):
    """R_s of masks drawn anew would not shrink with the radius; nor would a teacher be alike."""
    model = taken(build(family, **with_dropout(family))).train()
    inputs, values = batch(family, LENGTHS), []
    for radius in (1e-2, 1e-3):
        torch.manual_seed(5)
        regularizer = SmartRegularizer.for_transformers(model, SmartConfig(radius=radius))
        smart = regularizer(**inputs)
        values.append(smart.loss.item())
    assert smart.random_state is not None and smart.gain() > 3
    assert values[0] / values[1] == pytest.approx(100, rel=0.2)
    teacher = MomentumTeacher(model)
    assert teacher.loss(smart.logits, random_state=smart.random_state, **inputs) == 0
