"""What the tests of the Triton kernels have in common."""

from __future__ import annotations

import torch

# Without a GPU, conftest.py has turned Triton's interpreter on, which takes CPU tensors.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
