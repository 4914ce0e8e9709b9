"""Which build of torch there is. setup.py reads this file too, so it imports nothing."""

from __future__ import annotations

from types import ModuleType


def torch_build(torch: ModuleType) -> str:
    """Release and kind of a torch, such as ``2.13.0+cpu``; C++ of another build may not fit it.

    Its own version does not always tell the kind: ``2.13.0`` may be for any release of CUDA.

    Args:
        torch: the module, of which ``__version__`` and ``version`` are read.

    Returns:
        The release, a plus sign, and one of ``cpu``, ``cu130``, ``rocm6.4`` or ``xpu``.
    """
    release = str(torch.__version__).partition("+")[0]
    return f"{release}+{_kind(torch.version)}"


def _kind(version: ModuleType) -> str:
    if version.cuda:
        return "cu" + "".join(version.cuda.split(".")[:2])
    if getattr(version, "hip", None):
        return "rocm" + ".".join(version.hip.split(".")[:2])
    return "xpu" if getattr(version, "xpu", None) else "cpu"
