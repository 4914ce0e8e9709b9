"""What is read out of cuobjdump's listings; the listings are of two small kernels."""

from __future__ import annotations

import pytest

from tests.build.cuda_check import Kernel, waits_first

WAIT = (
    "        /*0010*/                   ACQBULK ;                        /* 0x000000000000782e */\n"
)
LOAD = (
    "        /*0070*/                   LDG.E R0, desc[UR4][R2.64] ;     /* 0x0000000402007981 */\n"
)
SHARED = (
    "        /*0080*/                   LDS R0, [R2] ;                   /* 0x0000000402007984 */\n"
)
ATOMIC = (
    "        /*0090*/              @!P1 ATOMG.E.ADD R0, [R2.64], R3 ;    /* 0x0000000402007986 */\n"
)


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        (WAIT + LOAD, True),
        (SHARED + WAIT + ATOMIC, True),
        (WAIT, True),
        (LOAD + WAIT, False),
        (ATOMIC + WAIT + LOAD, False),
        (LOAD, False),
    ],
)
def test_a_kernel_waits_before_it_touches_global_memory(text, waits):
    assert waits_first(text) == waits
    has_fault = any("await_previous_kernel" in x for x in Kernel("k", 90, waits=waits).faults())
    assert has_fault != waits
    assert not Kernel("k", 80, waits=waits).faults()
