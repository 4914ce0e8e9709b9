"""Triton kernels, installed as ``sbrrt_fast.kernels``; nothing in here imports ``sbrrt_fast``.

One module per op, in this order: kernels (``_forward_kernel``, ...) and host functions
(``forward_into``, ``backward_into``, ...) that write into given tensors and return nothing, with
the signatures of ``torch.ops.sbrrt.<op>_forward_into`` and so on. A host function checks what it
reads, then its results, then that they share no memory (``write_set``); scratch is all it
allocates. Shared by all: ``philox`` (random words by logical index), ``launch`` (every launch goes
through it), ``launch_table`` (in what blocks, with how many warps, and why) and ``checks`` (of
arguments). ``sbrrt_fast/ops/_backend/library.py`` makes ops of the host functions.

A matrix is passed with the stride between its rows (``checks.strided``); it may be columns of a
wider one. What is not wanted or not there is None, which a kernel asks for when it is compiled.

A kernel begins with ``await_previous()`` (``previous_kernel``), since ``launch`` may start it while
the one before it still runs.

Names in kernels: ``p_`` a pointer, with the dtype and shape it points at in a comment; ``i_`` a
scalar index, ``o_`` offsets, ``m_`` a mask, ``b_`` a block of values. Numbers that change from one
batch to the next are neither constexpr nor specialised (``do_not_specialize``), so that no batch
compiles anything.

Ahead of time: a module with kernels has ``aot_calls() -> Iterator[(name, call)]``. Each ``call()``
runs a host function on ``meta`` tensors; together they reach every kernel in every shape class and
dtype. ``python -m sbrrt_fast.kernels.aot`` compiles all of these launches for GPUs that need not be
here, and tells registers, shared memory, spills and matrix instructions.
"""
