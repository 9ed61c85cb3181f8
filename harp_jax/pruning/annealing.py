"""An annealed budget: targets and rates that come down geometrically, by the count of updates."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from harp_jax.pruning.rates import logit_from_rate, rate_from_logit
from harp_jax.types import Rate, Scalar


def progress(updates: Int[Array, ""] | int, last: int) -> Scalar:
    """Computes how far annealing is after some updates: 0 before the first, 1 from `last` on.

    Args:
        updates: Updates done, >= 0.
        last: Updates that annealing takes, >= 1.

    Returns:
        A scalar in [0, 1].
    """
    return jnp.minimum(jnp.asarray(updates, jnp.float32) / last, 1.0)


def annealed_target(start: ArrayLike, target: ArrayLike, done: Scalar) -> Scalar:
    """Computes the target of the moment: start^(1 - done) * target^done.

    Args:
        start: Share of the dense cost at the start, >= `target`.
        target: The final target, in (0, 1].
        done: See `progress`.

    Returns:
        A scalar from `start` down to `target`, which it is exactly at the end.
    """
    start, target = jnp.asarray(start, jnp.float32), jnp.asarray(target, jnp.float32)
    return target * jnp.power(start / target, 1.0 - done)


def annealed_logit(logit: Scalar, minimum: ArrayLike, done: Scalar) -> Scalar:
    """Computes the logit of a fixed rate's value of the moment: rate^done.

    Args:
        logit: Logit of the final rate.
        minimum: Smallest rate a_min, in [0, 1).
        done: See `progress`.

    Returns:
        A logit that never grows with `done` (up to rounding). It begins at 0.99 of the sigmoid's
        range, or above it at the final one, and is exactly the final one at the end.
    """
    rate: Rate = jnp.power(rate_from_logit(logit, minimum), done)
    above = jnp.maximum(logit_from_rate(rate, minimum), logit)
    return jnp.where(done < 1.0, above, jnp.asarray(logit, jnp.float32))
