"""Compression rates and the trainable logits behind them.

A layer's compression rate `a` is the fraction of its weights that is kept. It is learned through
an unconstrained logit `r` (HARP, Section 3.2):

    a = a_min + (1 - a_min) * sigmoid(r),    a_min = alpha * (target rate of the network).
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# sigmoid(r) is kept inside these bounds when a logit is made from a rate. The upper bound is the
# authors': a rate of 1 starts at 0.99 so that its logit stays finite. Their lower bound, -0.99,
# gives NaN for any rate below the minimum; this one gives a small positive share.
LARGEST_SHARE = 0.99
SMALLEST_SHARE = 1e-6


def rate_from_logit(logit: ArrayLike, minimum: ArrayLike) -> Float[Array, "..."]:
    """Computes the compression rate of a logit.

    Args:
        logit: Trainable logit(s) r, any real number.
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        The rate a_min + (1 - a_min) * sigmoid(logit), in (a_min, 1).
    """
    minimum = jnp.asarray(minimum, jnp.float32)
    return jax.nn.sigmoid(jnp.asarray(logit, jnp.float32)) * (1.0 - minimum) + minimum


def logit_from_rate(rate: ArrayLike, minimum: ArrayLike) -> Float[Array, "..."]:
    """Computes the logit of a compression rate: the inverse of `rate_from_logit`, kept finite.

    Args:
        rate: Fraction(s) kept, in (0, 1]. Rates at or below `minimum`, and rates so near to 1 that
            the sigmoid would pass 0.99, are moved to the nearest rate with a finite logit.
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        The float32 logit(s).
    """
    rate, minimum = jnp.asarray(rate, jnp.float32), jnp.asarray(minimum, jnp.float32)
    share = jnp.clip((rate - minimum) / (1.0 - minimum), SMALLEST_SHARE, LARGEST_SHARE)
    return jnp.log(share / (1.0 - share))


def logit_between(low: float, high: float, minimum: float) -> Float[Array, ""]:
    """Computes the logit of the middle of a range of rates, as far as logits reach.

    Args:
        low: Lower end, below 1.
        high: Upper end, above `minimum`.
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        The float32 logit.
    """
    rate = (max(low, minimum) + min(high, 1.0)) / 2
    return jnp.float32(math.log((rate - minimum) / (1.0 - rate)))


def logit_from_count(count: int, size: int, minimum: float) -> Float[Array, ""]:
    """Computes the logit of a rate at which `masks.kept_weights` is `count`.

    All rates in ((count - 1) / size, count / size] keep as many. The rate is the middle of those
    above the minimum, so that no rounding changes the count.

    Args:
        count: Kept weights, above minimum * size, up to `size`.
        size: Number of weights in the layer.
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        The float32 logit.
    """
    return logit_between((count - 1) / size, count / size, minimum)
