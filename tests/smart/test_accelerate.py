"""SMART in a loop of one's own with Accelerate."""

from __future__ import annotations

import math

import pytest

from tests.smart.examples import example

pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}])
def test_the_example_trains_minilm(minilm_dir, capsys, settings):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    gains = example("smart_accelerate").main(str(minilm_dir), cpu=True, **settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(gains) == 4 and math.exp(sum(map(math.log, gains)) / 4) > 10
    assert capsys.readouterr().out.count("R_s") == 4
