"""Exact top-k masks for a *traced* compression rate, with straight-through gradients.

The number of kept entries depends on a learned rate, so it is not known when the program is
compiled and `lax.top_k` cannot be used. Instead of sorting, the k-th largest magnitude is found by
bisection on the bits of the floats: non-negative floats are ordered like their bit patterns, so 16
counting passes fix the threshold exactly (`benchmarks/masks.py` compares it with sorting).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from harp_jax.types import Mask, Scores

# Entries counted together. Their count has to fit into ten bits, and XLA's CPU backend counts in
# one pass only up to here: a longer sum is cut into windows, which are written and read once more.
_BLOCK = 32

KeptCount = Callable[[jax.Array, int], jax.Array]


def kept_weights(rate: Float[Array, "..."], size: int) -> Int[Array, "..."]:
    """Number of weights that a rate keeps: size - int((1 - rate) * size), in float32.

    Args:
        rate: Fraction kept, in [0, 1].
        size: Number of weights in the layer.

    Returns:
        The kept count, in 0..size; truncation rounds the kept share up.
    """
    rate = jnp.asarray(rate, jnp.float32)
    return size - ((1.0 - rate) * jnp.float32(size)).astype(jnp.int32)


def kept_channels(rate: Float[Array, "..."], size: int) -> Int[Array, "..."]:
    """Number of input channels that a rate keeps: round half to even, but never a dead layer.

    Args:
        rate: Fraction kept, in [0, 1].
        size: Number of input channels.

    Returns:
        The kept count, in 1..size (the authors' code can return 0 and so disconnect the network).
    """
    rate = jnp.asarray(rate, jnp.float32)
    return jnp.clip(jnp.round(rate * jnp.float32(size)), 1, size).astype(jnp.int32)


def weight_mask(scores: Scores, rate: Float[Array, ""]) -> Mask:
    """Mask that keeps the `kept_weights(rate, n)` connections of largest |score|.

    Ties are broken by index: of equal magnitudes the one that comes first in C order is kept, so
    the count is always exact. The gradient is the straight-through one (HARP, Section 3.2): with g
    the cotangent of the mask, d/dscores = g * sign(scores) and d/drate = sum(g).

    Args:
        scores: Any shape, finite.
        rate: Fraction kept, scalar in [0, 1]; may be traced.

    Returns:
        float32 mask of 0.0 and 1.0 in the shape of `scores`.
    """
    return _straight_through_mask(scores, jnp.asarray(rate, jnp.float32), kept_weights)


def channel_mask(scores: Float[Array, " channels"], rate: Float[Array, ""]) -> Mask:
    """`weight_mask` over input channels: keeps `kept_channels(rate, n)` of them.

    Args:
        scores: One score per input channel.
        rate: Fraction of channels kept, scalar in [0, 1]; may be traced.

    Returns:
        float32 mask `[channels]` of 0.0 and 1.0.
    """
    return _straight_through_mask(scores, jnp.asarray(rate, jnp.float32), kept_channels)


def kernel_mask(scores: Scores, rate: Float[Array, ""], kernel_ndim: int) -> Mask:
    """Mask that multiplies a kernel; the scores' shape tells the granularity.

    Args:
        scores: The kernel's shape (weight) or `[in]` (channel).
        rate: Fraction kept, scalar in [0, 1].
        kernel_ndim: Number of dimensions of the kernel, whose last two axes are (in, out).

    Returns:
        Mask that broadcasts to the kernel without changing its rank.
    """
    if scores.ndim == kernel_ndim:
        return weight_mask(scores, rate)
    return channel_mask(scores, rate).reshape((1,) * (kernel_ndim - 2) + (-1, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _straight_through_mask(scores, rate, kept_count: KeptCount):
    return _largest(jnp.abs(scores).astype(jnp.float32), kept_count(rate, scores.size))


def _mask_forward(scores, rate, kept_count):
    return _straight_through_mask(scores, rate, kept_count), jnp.sign(scores)


def _mask_backward(kept_count, sign, cotangent):
    del kept_count
    return cotangent * sign, cotangent.sum()


_straight_through_mask.defvjp(_mask_forward, _mask_backward)


def _largest(magnitudes: jax.Array, count: jax.Array) -> jax.Array:
    """Mask of the `count` largest entries; of equal ones, the first in C order."""
    bits = lax.bitcast_convert_type(magnitudes, jnp.uint32)
    threshold = _threshold(bits, count)
    at_least = bits >= threshold

    def first_of_the_equal(_):
        equal = bits == threshold
        surplus = at_least.sum() - count
        room = equal.sum() - surplus
        return jnp.where(equal, jnp.cumsum(equal.ravel()).reshape(equal.shape) <= room, at_least)

    mask = lax.cond(at_least.sum() == count, lambda _: at_least, first_of_the_equal, None)
    return mask.astype(jnp.float32)


def _threshold(bits: jax.Array, count: jax.Array) -> jax.Array:
    """The largest number that at least `count` entries reach: the `count`-th largest entry.

    Each pass over the entries fixes two bits of it. The three counts that this takes are summed at
    once, packed into one word per block of entries.
    """
    blocks = jnp.pad(bits.ravel(), (0, -bits.size % _BLOCK)).reshape(-1, _BLOCK)

    def fix_two_bits(step, threshold):
        shift = (30 - 2 * step).astype(jnp.uint32)
        reached = [
            (blocks >= (threshold | (jnp.uint32(digit) << shift))).astype(jnp.uint32)
            for digit in (1, 2, 3)
        ]
        packed = (reached[0] + (reached[1] << 10) + (reached[2] << 20)).sum(1)
        counts = [((packed >> place) & 1023).astype(jnp.int32).sum() for place in (0, 10, 20)]
        digit = sum((total >= count).astype(jnp.uint32) for total in counts)
        return threshold | (digit << shift)

    return lax.fori_loop(0, 16, fix_two_bits, jnp.uint32(0))
