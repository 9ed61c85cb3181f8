"""Rates that learn from the entries around the threshold of their layer's mask."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from harp_jax.pruning.masks import channel_mask, over_kernel, weight_mask
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Kernel, Mask, Rate, Scalar, Scores

MaskOf = Callable[[Scores, Rate], Mask]


def window_mask(scores: Scores, rate: Rate, width: float, mask: MaskOf = weight_mask) -> Mask:
    """Marks the entries whose rank is near the number that a rate keeps.

    As many ranks are marked above the threshold as below: `width` times the kept number, at least
    one, and at most as many as are left to add. So nothing is marked where nothing is left.

    Args:
        scores: Any shape, finite. A score of zero is that of a removed unit, or of no weight at
            all: it is never marked, and not left to add.
        rate: Fraction kept, scalar in [0, 1]; may be traced.
        width: Ranks on each side, relative to the kept number, in (0, 1].
        mask: `masks.weight_mask` or `masks.channel_mask`.

    Returns:
        Float32 array of the scores' shape: 0.0, or one over the marked share of the entries, so
        that its mean is 1. All zero if nothing is marked.
    """
    left = (scores != 0).mean() - rate
    half = jnp.minimum(jnp.maximum(width * rate, 1 / scores.size), jnp.maximum(left, 0.0))
    more, less = mask(scores, rate + half), mask(scores, jnp.maximum(rate - half, 0.0))
    marked = (more - less) * (scores != 0)
    share = marked.mean()
    return marked / jnp.where(share > 0, share, 1.0)


def windowed_kernel(
    kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar, width: float
) -> Kernel:
    """Computes `layers.masked_kernel`; the rate learns from the entries around the threshold.

    A rate that grows by da lets in the n * da entries just below the threshold, n being the number
    of all. So dL/da is n times the mean of dL/dmask over entries there, which is taken over those
    of `window_mask`. The straight-through gradient sums dL/dmask over all n. A rate with nothing
    left to add has no gradient.

    Args:
        kernel: `[height, width, in, out]` or `[in, out]`.
        scores: The kernel's shape, or `[channels]`: see `masks.kernel_mask`.
        logit: Scalar rate logit.
        minimum: Scalar smallest rate, in [0, 1).
        width: See `window_mask`.

    Returns:
        The same masked kernel, and the same gradients but for the logit's.
    """
    weights = scores.shape == kernel.shape
    mask = weight_mask if weights else channel_mask
    rate = rate_from_logit(logit, minimum)
    held, fixed = lax.stop_gradient(rate), lax.stop_gradient(scores)
    around = window_mask(fixed, held, width, mask)
    return kernel * over_kernel(mask(scores, held) + around * (rate - held), kernel.shape)


def windowed(width: float) -> Callable[..., Kernel]:
    """Returns `windowed_kernel` at a width, for `layers.bake`."""
    return functools.partial(windowed_kernel, width=width)
