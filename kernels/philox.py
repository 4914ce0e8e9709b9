"""Philox4x32-10 by logical element index: the random words behind dropout and noise.

Element e, 64 bits, has word e % 4 of block e // 4; a block's four words come from the counter
(block low, block high, site, step) under the key (seed low, seed high), 32 bits each. Whoever needs
a block's four words together pays a quarter per word: ``block_words`` where indices start at a
multiple of 4, ``element_words`` anywhere.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl


def dropout_numbers(p: float) -> tuple[int, float]:
    """(threshold, scale): words below the first are dropped, the others scaled by the second."""
    return math.floor(p * 2**32), 1.0 / (1.0 - p)


@triton.jit
def load_stream(p_rng, site):
    """What a block number leaves open of the counter and the key: (seed, site, step).

    p_rng points at int64 (seed, step); site is an integer below 2^32.
    """
    return tl.load(p_rng), site.to(tl.uint32), tl.load(p_rng + 1).to(tl.uint32)


@triton.jit
def _philox(i_block, stream):
    """int64 block numbers [...] -> four uint32 [...].

    Its own rounds, for a 64-bit product is one machine instruction where tl.philox takes two.
    """
    seed, w2, w3 = stream
    w0, w1 = i_block.to(tl.uint32), (i_block >> 32).to(tl.uint32)
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        b_product0, b_product1 = w0.to(tl.uint64) * 0xD2511F53, w2.to(tl.uint64) * 0xCD9E8D57
        w0, w2 = (b_product1 >> 32).to(tl.uint32), (b_product0 >> 32).to(tl.uint32)
        w0, w2 = w0 ^ w1 ^ key0, w2 ^ w3 ^ key1
        w1, w3 = b_product1.to(tl.uint32), b_product0.to(tl.uint32)
        key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
        key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
    return w0, w1, w2, w3


@triton.jit
def _pick(i_word, w0, w1, w2, w3):
    """Word number i_word of four."""
    return tl.where(i_word < 2, tl.where(i_word == 0, w0, w1), tl.where(i_word == 2, w2, w3))


@triton.jit
def element_words(i_element, stream):
    """int64 elements [...] -> their words, uint32 [...]."""
    w0, w1, w2, w3 = _philox(i_element >> 2, stream)
    return _pick((i_element & 3).to(tl.int32), w0, w1, w2, w3)


@triton.jit
def _in_order(w0, w1, w2, w3):
    """Four words of each block, [m, n], as one row: [m, 4 n]."""
    b_words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(b_words, (w0.shape[0], w0.shape[1] * 4))


@triton.jit
def block_words(i_block, stream):
    """int64 blocks [m, n] -> the words of their elements in order, uint32 [m, 4 n]."""
    w0, w1, w2, w3 = _philox(i_block, stream)
    return _in_order(w0, w1, w2, w3)


@triton.jit
def row_words(i_first, WIDTH: tl.constexpr, stream, ALIGNED: tl.constexpr):
    """Words of the elements i_first[i] + j, uint32 [m, WIDTH].

    i_first is int64 [m], multiples of 4 if ALIGNED; else four neighbours lie in two blocks. WIDTH
    is a power of 2, at least 4.
    """
    i_block = (i_first >> 2)[:, None] + tl.arange(0, WIDTH // 4)[None, :]
    if ALIGNED:
        return block_words(i_block, stream)
    else:
        i_word = (i_first & 3).to(tl.int32)[:, None]
        w0, w1, w2, w3 = _philox(i_block, stream)
        w4, w5, w6, _ = _philox(i_block + 1, stream)
        return _in_order(
            _pick(i_word, w0, w1, w2, w3),
            _pick(i_word, w1, w2, w3, w4),
            _pick(i_word, w2, w3, w4, w5),
            _pick(i_word, w3, w4, w5, w6),
        )


@triton.jit
def kept(b_words, threshold):
    """Which words dropout keeps, bool; ``threshold`` is the first of ``dropout_numbers``."""
    return b_words >= threshold.to(tl.uint32)


@triton.jit
def dropout_factors(b_words, threshold, scale):
    """0 where dropped and ``scale`` where kept, float32."""
    return tl.where(kept(b_words, threshold), scale, 0.0)


@triton.jit
def _turn(word):
    """(cos, sin) of 2 pi word / 2^32, float64 to 1e-10.

    The word's two top bits, rounded, are the quadrant and the rest is exact, so no reduction loses
    digits or needs a stack; Taylor's series hold within an eighth of a turn.
    """
    quadrant = tl.add(word, 0x20000000, sanitize_overflow=False) >> 30
    rest = tl.sub(word, quadrant << 30, sanitize_overflow=False).to(tl.int32, bitcast=True)
    x = rest.to(tl.float64) * (2.0 * 3.141592653589793 * 2.0**-32)
    z = x * x
    b_sine = -1 / 5040 + z * (1 / 362880 - z * (1 / 39916800))
    b_sine = x * (1.0 + z * (-1 / 6 + z * (1 / 120 + z * b_sine)))
    b_cosine = -1 / 720 + z * (1 / 40320 + z * (-1 / 3628800 + z * (1 / 479001600)))
    b_cosine = 1.0 + z * (-1 / 2 + z * (1 / 24 + z * b_cosine))
    is_odd = (quadrant & 1) == 1
    near, far = tl.where(is_odd, b_sine, b_cosine), tl.where(is_odd, b_cosine, b_sine)
    turns = (quadrant == 1) | (quadrant == 2)
    return tl.where(turns, -near, near), tl.where(quadrant >= 2, -far, far)


@triton.jit
def normal_pair(w_radius, w_angle):
    """Box-Muller on two words, in float64 as the reference: two float32."""
    radius = tl.sqrt(-2.0 * tl.log((w_radius.to(tl.float64) + 1.0) * 2.0**-32))
    cosine, sine = _turn(w_angle)
    return (radius * cosine).to(tl.float32), (radius * sine).to(tl.float32)


@triton.jit
def block_normals(i_block, stream):
    """int64 blocks [m, n] -> standard normal draws of their elements, float32 [m, 4 n]."""
    w0, w1, w2, w3 = _philox(i_block, stream)
    n0, n1 = normal_pair(w0, w1)
    n2, n3 = normal_pair(w2, w3)
    b_normals = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(b_normals, (i_block.shape[0], i_block.shape[1] * 4))


@triton.jit
def row_normals(i_first, WIDTH: tl.constexpr, stream, ALIGNED: tl.constexpr):
    """Standard normal draws of pairs of a row's words, float32 [m, WIDTH]; see ``row_words``."""
    if ALIGNED:
        return block_normals((i_first >> 2)[:, None] + tl.arange(0, WIDTH // 4)[None, :], stream)
    else:
        i_even = i_first[:, None] + 2 * tl.arange(0, WIDTH // 2)[None, :]
        n0, n1 = normal_pair(element_words(i_even, stream), element_words(i_even + 1, stream))
        return tl.reshape(tl.join(n0, n1), (i_first.shape[0], WIDTH))
