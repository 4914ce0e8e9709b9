"""Mends Triton 3.6's interpreter, where kernels run without a GPU (TRITON_INTERPRET=1).

It makes the bound of a loop an int by ``int(array of one element)``, which NumPy has refused since
2.4; Triton 3.7 squeezes the array first. This does the same.
"""

from __future__ import annotations

import triton


def mend() -> None:
    """Replaces how scalars become ints; does nothing where Triton does it right."""
    if tuple(map(int, triton.__version__.split(".")[:2])) != (3, 6):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_with_index
