"""Pre-training has BERT's heads alone; other families are refused before anything is written."""

from __future__ import annotations

import pytest

from sbrrt_fast.cli import main
from tests.pretraining.runs import inputs
from tests.stock_backbones import stock_backbone


@pytest.mark.parametrize("family", ["roberta", "electra", "mpnet"])
def test_other_families_are_refused(family, tmp_path, capsys):
    stock_backbone(tmp_path / "backbone", family)
    flags = ["pretrain", *inputs(tmp_path), "--output", str(tmp_path / "run")]
    assert main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert family in error and "choose a BERT" in error
    assert not (tmp_path / "run").exists()
