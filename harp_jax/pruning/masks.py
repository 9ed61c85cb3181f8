"""Exact top-k masks for a *traced* compression rate, with straight-through gradients.

The number of kept entries depends on a learned rate, so it is not known when the program is
compiled and `lax.top_k` cannot be used. Instead of sorting, the k-th largest magnitude is found by
bisection on the bits of the floats: non-negative floats are ordered like their bit patterns, so 16
counting passes, 8 over each half of the bits, fix the threshold exactly (`benchmarks/masks.py`
compares it with sorting).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from harp_jax.types import Mask, Scores

# Entries are counted together in columns of _DEPTH, _WIDTH columns side by side: added up slice by
# slice, they keep the processor's vectors full, which `sum` over an axis does not on CPUs. Three
# counts of up to _DEPTH share the bits of one uint16.
_DEPTH, _WIDTH = 16, 256

KeptCount = Callable[[jax.Array, int], jax.Array]


def kept_weights(rate: Float[Array, "..."], size: int) -> Int[Array, "..."]:
    """Computes the number of weights that a rate keeps: size - int((1 - rate) * size), in float32.

    Args:
        rate: Fraction kept, in [0, 1].
        size: Number of weights in the layer.

    Returns:
        The kept count, in 0..size. Truncation of the removed share rounds the kept one up.
    """
    rate = jnp.asarray(rate, jnp.float32)
    return size - ((1.0 - rate) * jnp.float32(size)).astype(jnp.int32)


def kept_channels(rate: Float[Array, "..."], size: int) -> Int[Array, "..."]:
    """Computes the number of input channels that a rate keeps: at least one, rounded half to even.

    Args:
        rate: Fraction kept, in [0, 1].
        size: Number of input channels.

    Returns:
        The kept count, in 1..size (the authors' code can return 0 and so disconnect the network).
    """
    rate = jnp.asarray(rate, jnp.float32)
    return jnp.clip(jnp.round(rate * jnp.float32(size)), 1, size).astype(jnp.int32)


def weight_mask(scores: Scores, rate: Float[Array, ""]) -> Mask:
    """Computes the mask that keeps the `kept_weights(rate, n)` connections of largest |score|.

    Ties are broken by index: of equal magnitudes the first in C order is kept, so that the count is
    always exact. The gradient is the straight-through one (HARP, Section 3.2): with g
    the cotangent of the mask, d/dscores = g * sign(scores) and d/drate = sum(g).

    Args:
        scores: Any shape, finite.
        rate: Fraction kept, scalar in [0, 1]; may be traced.

    Returns:
        Float32 mask of 0.0 and 1.0 in the shape of `scores`.
    """
    return _straight_through_mask(scores, jnp.asarray(rate, jnp.float32), kept_weights)


def channel_mask(scores: Float[Array, " channels"], rate: Float[Array, ""]) -> Mask:
    """Computes the mask that keeps `kept_channels(rate, n)` input channels; see `weight_mask`.

    Args:
        scores: One score per input channel.
        rate: Fraction of channels kept, scalar in [0, 1]; may be traced.

    Returns:
        Float32 mask `[channels]` of 0.0 and 1.0.
    """
    return _straight_through_mask(scores, jnp.asarray(rate, jnp.float32), kept_channels)


def kernel_mask(scores: Scores, rate: Float[Array, ""], kernel_shape: Sequence[int]) -> Mask:
    """Computes the mask that multiplies a kernel; the scores' shape tells the granularity.

    Args:
        scores: The kernel's shape (weight) or `[channels]` (channel). `channels` are the kernel's
            inputs or, where a dense layer reads flattened feature maps, a divisor of them: Flax
            flattens channels last, so the features of one channel are `channels` apart, and they
            are kept or dropped together.
        rate: Fraction kept, scalar in [0, 1].
        kernel_shape: Shape of the kernel, whose last two axes are (in, out).

    Returns:
        Mask that broadcasts to the kernel without changing its rank.
    """
    if scores.shape == tuple(kernel_shape):
        return weight_mask(scores, rate)
    return over_kernel(channel_mask(scores, rate), kernel_shape)


def over_kernel(mask: Mask, kernel_shape: Sequence[int]) -> Mask:
    """Brings a mask of single weights or of channels into a shape that broadcasts to the kernel.

    Args:
        mask: The kernel's shape or `[channels]`, see `kernel_mask`.
        kernel_shape: Shape of the kernel, whose last two axes are (in, out).

    Returns:
        The mask of single weights as it is, or that of channels with the rank of the kernel.
    """
    if mask.shape == tuple(kernel_shape):
        return mask
    mask = jnp.tile(mask, kernel_shape[-2] // mask.size)
    return mask.reshape((1,) * (len(kernel_shape) - 2) + (-1, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _straight_through_mask(scores, rate, kept_count: KeptCount):
    return largest(scores, kept_count(rate, scores.size)).astype(jnp.float32)


def _mask_forward(scores, rate, kept_count):
    return _straight_through_mask(scores, rate, kept_count), scores


def _mask_backward(kept_count, scores, cotangent):
    del kept_count
    return cotangent * jnp.sign(scores), cotangent.sum()


_straight_through_mask.defvjp(_mask_forward, _mask_backward)


def _bits(scores: jax.Array) -> jax.Array:
    """Computes the bit patterns of the magnitudes, which have the same order.

    Computing them again at each use is cheaper than writing and reading them.
    """
    return lax.bitcast_convert_type(jnp.abs(scores).astype(jnp.float32), jnp.uint32)


def largest(scores: jax.Array, count: jax.Array) -> jax.Array:
    """Finds the entries of largest magnitude; of equal ones, the first in C order.

    Args:
        scores: Any shape, finite.
        count: How many, from 0 to all; may be traced.

    Returns:
        Booleans in the shape of `scores`, `count` of them True.
    """
    threshold, reached = _threshold(scores, count)

    def end_of_the_kept(_):
        equal = (_bits(scores) == threshold).ravel()
        return (jnp.cumsum(equal) <= equal.sum() - (reached - count)).sum()

    # Entries at the threshold are kept up to this place: all, unless more are equal than have room.
    end = lax.cond(reached == count, lambda _: scores.size, end_of_the_kept, None)
    place = jnp.arange(scores.size).reshape(scores.shape)
    bits = _bits(scores)
    return (bits > threshold) | ((bits == threshold) & (place < end))


def _threshold(scores: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the bits of the `count`-th largest magnitude, and how many entries reach it.

    Its upper half is searched first, then the lower one among the entries that share the upper:
    16-bit numbers take half the memory traffic and half the instructions of 32-bit ones.
    """
    bits = _bits(scores)
    upper = _columns((bits >> 16).astype(jnp.uint16))
    upper, reached = _search(upper, count, jnp.int32(scores.size))
    first = upper.astype(jnp.uint32) << 16
    # Entries above those that share the upper half reach every lower half, those below only 0.
    lower = jnp.where(bits < first, 0, jnp.minimum(bits - first, 0xFFFF)).astype(jnp.uint16)
    lower, reached = _search(_columns(lower), count, reached)
    return first | lower.astype(jnp.uint32), reached


def _columns(entries: jax.Array) -> jax.Array:
    """Brings entries, and zeros after them, into the shape in which they are counted."""
    padded = jnp.pad(entries.ravel(), (0, -entries.size % (_DEPTH * _WIDTH)))
    return padded.reshape(-1, _DEPTH, _WIDTH)


@jax.jit  # so that it is traced once for all layers, stages and programs with so many columns
def _search(
    columns: jax.Array, count: jax.Array, reached: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds the largest uint16 that at least `count` entries reach, and how many reach it.

    Each pass over the entries fixes two bits. The three counts that this takes are summed at once,
    packed into one word. `reached` is the number that reach 0.
    """

    def fix_two_bits(step, found):
        threshold, reached = found
        shift = (14 - 2 * step).astype(jnp.uint16)
        candidates = [threshold | (jnp.uint16(digit) << shift) for digit in (1, 2, 3)]
        words = [
            (row >= candidate).astype(jnp.uint16) << place
            for row in (columns[:, each] for each in range(_DEPTH))
            for candidate, place in zip(candidates, (0, 5, 10), strict=True)
        ]
        packed = sum(words, start=jnp.uint16(0))
        counts = _unpacked_sums(packed)
        digit = sum((total >= count).astype(jnp.uint16) for total in counts)
        return threshold | (digit << shift), jnp.stack([reached, *counts])[digit]

    return lax.fori_loop(0, 8, fix_two_bits, (jnp.uint16(0), reached))


def _unpacked_sums(packed: jax.Array) -> list[jax.Array]:
    """Sums the three 5-bit numbers in each uint16; 32 words at once first, in 10 bits each."""
    packed = packed.astype(jnp.uint32)
    wide = (packed & 31) | ((packed & (31 << 5)) << 5) | ((packed & (31 << 10)) << 10)
    wide = wide.reshape(-1, 32).sum(1)
    return [((wide >> place) & 1023).astype(jnp.int32).sum() for place in (0, 10, 20)]
