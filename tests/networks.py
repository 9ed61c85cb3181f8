"""The `tiny` network's first variables, made by one program each for all tests of a session."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from harp_jax import models
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import make_prunable
from harp_jax.pruning.scores import Granularity

RATE, MINIMUM = 0.5, 0.02


@functools.cache
def tiny(granularity: Granularity | None = None) -> dict[str, Any]:
    """Variables for 8x8 gray images in 10 classes.

    Args:
        granularity: None for the dense network; else every layer is pruned at rate 0.5.

    Returns:
        The variables, with the same params for every granularity; not to be donated.
    """

    if granularity is None:
        init = jax.jit(models.create("tiny", 10).init)
        return dict(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    dense = tiny()
    rates = dict.fromkeys(parameter_costs(dense["params"]), RATE)
    return jax.jit(lambda tree: make_prunable(tree, rates, MINIMUM, granularity))(dense)
