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

    Args:
        scores: Any shape, finite. Entries with a score of zero are not marked: those of removed
            units never come back.
        rate: Fraction kept, scalar in [0, 1]; may be traced.
        width: The marked ranks are those from (1 - width) to (1 + width) times the kept number,
            in (0, 1].
        mask: `masks.weight_mask` or `masks.channel_mask`.

    Returns:
        Float32 array of the scores' shape: 0.0, or one over the marked share of the entries, so
        that its mean is 1. All zero if nothing is marked.
    """
    more = mask(scores, jnp.minimum(rate * (1 + width), 1.0))
    marked = (more - mask(scores, rate * (1 - width))) * (scores != 0)
    share = marked.mean()
    return marked / jnp.where(share > 0, share, 1.0)


def windowed_kernel(
    kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar, width: float
) -> Kernel:
    """Computes `layers.masked_kernel`; the rate learns from the entries around the threshold.

    A rate that grows by da lets in the n * da entries just below the threshold, n being the number
    of all. So dL/da is n times the mean of dL/dmask over entries there, which is taken over those
    of `window_mask`. The straight-through gradient sums dL/dmask over all n.

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
