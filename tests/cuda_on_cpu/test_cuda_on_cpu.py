"""The machine that runs kernels on the CPU: what it computes, and that it catches planted bugs."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.build import ROOT
from tests.cuda_on_cpu.sanitized import run_sanitized

# In the order of Bug in cuda_on_cpu/ops/planted.cpp; what `checked` says of each. None: the result
# is wrong, and nothing but the result.
SCALE_BUGS = {
    "no_barrier": "another thread (wrote|reads) it, with no barrier between|nobody wrote it",
    "barrier_in_a_branch": "no barrier between|nobody wrote it|has ended without",
    "two_barriers": "came to the barrier at .* while",
    "thread_leaves_early": "ended",
    "shuffle_mask_without_itself": "does not name",
    "shuffle_mask_without_its_source": "which its mask .* does not name",
    "lane_stays_away": "no thread can go on|came to|ended",
    "shared_never_written": "nobody wrote it",
    "shared_out_of_bounds": r"byte 16 of a static shared array \(16 bytes\): out of bounds",
    "load_out_of_bounds": r"read of 4 bytes at byte 3612 of argument 0 .*: out of bounds",
    "store_out_of_bounds": r"write of 4 bytes at byte 3612 of argument 1 .*: out of bounds",
    "store_before": r"write of 4 bytes at byte -4 of argument 1 .*: out of bounds",
    "host_pointer": "not the device's",
    "misaligned": "not a multiple of 16",
    "blocks_collide": "another block wrote it in this launch",
    "syncwarp_forgotten": "another thread wrote it|nobody wrote it",
    "signed_overflow": "overflow of a sum",
    "wide_shift": "shift by too much",
    "previous_kernel_not_awaited": r"read of 4 bytes .* before await_previous_kernel\(\)",
    "store_before_previous_kernel": r"write of 4 bytes .* before await_previous_kernel\(\)",
}
TILE_BUGS = {
    "no_wait": "has not been waited for",
    "no_commit": "has not been waited for",
    "wait_for_too_few": "has not been waited for",
    "no_barrier_after_wait": "another thread wrote it, with no barrier|waited for|nobody wrote it",
    "swapped_fragment": None,
    "swapped_matrices": None,
    "misaligned_row": "not a multiple of 16",
}
BUGS = ["none", *SCALE_BUGS, *TILE_BUGS]
# Those that `plain`, which does not see accesses, cannot notice.
UNSEEN_BY_PLAIN = {"load_out_of_bounds", "host_pointer", "blocks_collide", "syncwarp_forgotten"}
UNSEEN_BY_PLAIN |= {"signed_overflow", "wide_shift", "shared_out_of_bounds"}
UNSEEN_BY_PLAIN |= {"store_before_previous_kernel"}


def scale(variant: str, bug: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows scaled to sum one, by the kernel and by torch."""
    x = torch.rand(3, 301, generator=torch.Generator().manual_seed(1)) + 0.5
    y = torch.full_like(x, float("nan"))
    library("planted", variant).call("scale", x, y, 3, 301, BUGS.index(bug), seed=seed)
    return y, x / x.sum(1, keepdim=True)


def product(variant: str, bug: str, seed: int, dtype: torch.dtype = torch.bfloat16):
    """a b^T of two tiles, by the kernel and by torch."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    c = torch.full((16, 16), float("nan"))
    arguments = (a, b, c, int(dtype == torch.float16), BUGS.index(bug))
    library("planted", variant).call("product", *arguments, seed=seed)
    return c, a.float() @ b.float().T


def agree(pair: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Whether two results are equal but for rounding."""
    return torch.allclose(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("seed", range(4))
def test_without_a_bug_results_are_right(variant: str, seed: int) -> None:
    assert agree(scale(variant, "none", seed))
    for dtype in (torch.float16, torch.bfloat16):
        assert agree(product(variant, "none", seed, dtype))


@pytest.mark.parametrize("bug", BUGS[1:])
def test_checked_names_the_bug(bug: str) -> None:
    message = (SCALE_BUGS | TILE_BUGS)[bug]
    run = scale if bug in SCALE_BUGS else product
    for seed in range(3):
        if message is None:
            assert not agree(run("checked", bug, seed))
        else:
            with pytest.raises(CudaError, match=message):
                run("checked", bug, seed)


@pytest.mark.parametrize("bug", [bug for bug in BUGS[1:] if bug not in UNSEEN_BY_PLAIN])
def test_plain_fails_in_some_order(bug: str) -> None:
    """Without a look at accesses a bug shows as an error or as a wrong result."""
    run = scale if bug in SCALE_BUGS else product
    right = 0
    for seed in range(20):
        try:
            right += agree(run("plain", bug, seed))
        except CudaError:
            continue
    assert right < 20


def test_plain_refuses_a_thread_that_never_waits_for_the_kernel_before() -> None:
    with pytest.raises(CudaError, match=r"ended without await_previous_kernel\(\)"):
        scale("plain", "previous_kernel_not_awaited", 0)


KERNEL = re.compile(r"__global__ .*?(\w+)\([^()]*\) \{\s*([^;]*);", re.DOTALL)


def test_every_kernel_begins_with_the_wait_for_the_kernel_before() -> None:
    """A launch lets it start while that one runs; ``launch`` is the one place that launches."""
    kernels = []
    for path in sorted((ROOT / "csrc" / "cuda").rglob("*.cu*")):
        text = path.read_text()
        here = KERNEL.findall(text)
        assert len(here) == text.count("__global__ ") and "<<<" not in text, path.name
        kernels += here
    assert len(kernels) > 20
    late = [name for name, first in kernels if first != "await_previous_kernel()"]
    assert not late, f"without await_previous_kernel(): {late}"


def test_an_error_names_kernel_block_and_thread() -> None:
    with pytest.raises(CudaError, match=r"scale_rows, block \(\d, 0, 0\), thread \(\d+, 0, 0\): "):
        scale("checked", "no_barrier", 0)


def test_after_an_error_the_next_launch_is_right() -> None:
    with pytest.raises(CudaError):
        scale("plain", "barrier_in_a_branch", 1)
    assert agree(scale("plain", "none", 1))


@pytest.mark.parametrize("num_values", [1, 31, 64, 1000])
def test_votes_and_atomics(num_values: int) -> None:
    values = torch.arange(num_values) - 20
    counts = torch.zeros(2, dtype=torch.int32)
    library("planted").call("count_values", values, counts, num_values, seed=5)
    assert counts.tolist() == [num_values, int((values > 0).sum())]


@pytest.mark.parametrize(("num_threads", "shared"), [(1025, 0), (32, (99 << 10) + 1), (0, 0)])
def test_a_launch_beyond_the_limits_is_refused(num_threads: int, shared: int) -> None:
    with pytest.raises(CudaError, match="launched with"):
        library("planted").call("too_large", torch.zeros(1), num_threads, shared)


def test_conversions_round_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4000, generator=generator) * 2.0 ** torch.randint(-30, 20, (4000,)).float()
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, 1e-8, 0.0, -0.0, 6e-8, 3e-8])
    ties = torch.cat([ties, torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("inf"), -1e38, 3.4e38])])
    x = torch.cat([x, ties])
    half, bfloat16 = torch.empty_like(x), torch.empty_like(x)
    library("planted").call("rounded", x, half, bfloat16, len(x))
    assert torch.equal(half, x.half().float())
    assert torch.equal(bfloat16, x.bfloat16().float())


@pytest.mark.parametrize(
    ("bug", "message"),
    {
        "none": "",
        "store_out_of_bounds": "use-after-poison",
        "shared_out_of_bounds": "use-after-poison",
        "load_out_of_bounds": "use-after-poison",
        "signed_overflow": "signed integer overflow",
        "misaligned": "not a multiple of 16",
    }.items(),
)
def test_under_the_sanitizers(bug: str, message: str) -> None:
    result = run_sanitized("tests.cuda_on_cpu.test_cuda_on_cpu", bug)
    assert message in result.stderr
    assert (result.returncode == 0) == (bug == "none"), result.stderr


if __name__ == "__main__":
    for seed in range(3):
        assert agree(scale("sanitized", sys.argv[1], seed))
        assert agree(product("sanitized", "none", seed))
