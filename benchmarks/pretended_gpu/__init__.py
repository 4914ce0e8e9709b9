"""A GPU that is not there: device code runs, and what would make the host wait is refused.

    with PretendedGpu() as gpu:
        step = build_step(model.to("cuda"), ...)
        with gpu.no_waits():
            step.round(batches, 0)

A tensor on this GPU is one of torch's ``meta`` device: shape and strides, no memory. A dispatch
mode sees every op that torch is about to run, those of backward passes and of forward mode among
them, checks where its tensors are, and runs it on values that it keeps in the host's memory. To
Python such a tensor's device is ``cuda``, and what chooses by device chooses as on a GPU.

Refused everywhere: an op of a host tensor and a device tensor. That includes the host's 0-dim
tensors, which torch allows: their value would be frozen in a captured graph.
Refused while a graph is captured: copies from or to the host, and pinned memory.
Refused within ``no_waits``: reading a device value (``item``, ``tolist``, ``cpu``, ``bool``),
results whose size depends on data (``nonzero``, indexing by a boolean mask), and copies to the
device that are not ``non_blocking`` from pinned memory.

The dispatcher does not see what a CUDA kernel's host code does: ops of the extension, and those of
torch that wait on CUDA alone, are taken at their schema's word.

``memory`` has the values, ``rules`` what is refused, ``operations`` the ops, ``names`` what Python
sees, ``streams`` the streams.
"""

from benchmarks.pretended_gpu.gpu import PretendedGpu, recording
from benchmarks.pretended_gpu.rules import Refused, name_of, waits_for_device
from benchmarks.pretended_gpu.streams import STREAMS

__all__ = ["STREAMS", "PretendedGpu", "Refused", "name_of", "recording", "waits_for_device"]
