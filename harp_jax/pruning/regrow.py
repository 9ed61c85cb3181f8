"""Regrowth: the smallest kept weights are dropped, and as many masked ones grow in their place.

The number of kept weights of every layer stays as its rate says, to the weight. After a regrowth
the scores rank all weights of a layer: the kept ones by their magnitude, above the masked ones by
what they grow by. So a rate that changes later drops the smallest weights, or adds those that are
the next to grow.

Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from harp_jax.pruning.layers import Path, leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.masks import kept_weights, largest, weight_mask
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Kernel, Mask, Scores, Variables

_SMALLEST_NORMAL = 0x00800000  # bits of the smallest float32 that is not denormal


def regrow(mask: Mask, weights: Kernel, growth: Kernel, dropped: Int[Array, ""]) -> Mask:
    """Drops the smallest kept weights of a layer, and grows as many.

    Those that grow have the largest |growth| of all that are masked then. Dropped weights are among
    them, so that there are always enough: one that grows at once stays as it is. Of equal ones the
    first in C order is kept, and grows.

    Args:
        mask: 0.0 and 1.0, any shape.
        weights: The shape of `mask`, below 1e38 in magnitude.
        growth: The shape of `mask`, below 1e38 in magnitude: the gradient of the loss with respect
            to the masked weights, or anything else to grow by.
        dropped: Number of weights to drop, from 0 to the kept ones; may be traced.

    Returns:
        Float32 mask of 0.0 and 1.0 with as many ones.
    """
    kept = mask > 0
    stay = largest(_above_others(weights, kept), kept.sum() - dropped)
    grown = largest(_above_others(growth, ~stay), dropped)
    return (stay | grown).astype(jnp.float32)


def _above_others(values: Kernel, chosen: Array) -> Kernel:
    """Returns positive numbers in the order of the chosen magnitudes, zeros included; else 0."""
    bits = lax.bitcast_convert_type(jnp.abs(values).astype(jnp.float32), jnp.uint32)
    positive = lax.bitcast_convert_type(bits + jnp.uint32(_SMALLEST_NORMAL), jnp.float32)
    return jnp.where(chosen, positive, 0.0)


def ranking(mask: Mask, weights: Kernel, growth: Kernel) -> Scores:
    """Computes scores that rank kept weights by magnitude, above masked ones by |growth|.

    Args:
        mask: 0.0 and 1.0, any shape.
        weights: The shape of `mask`.
        growth: The shape of `mask`.

    Returns:
        Scores in [1, 2] of kept weights, in [0, 0.5] of masked ones.
    """
    kept = mask > 0
    above, below = jnp.where(kept, weights, 0.0), jnp.where(kept, 0.0, growth)
    return jnp.where(kept, 1.0 + _relative(above), 0.5 * _relative(below))


def _relative(values: Kernel) -> Kernel:
    magnitudes = jnp.abs(values)
    most = magnitudes.max()
    return magnitudes / jnp.where(most > 0, most, 1.0)


def regrown(variables: Variables, growth: Variables, share: Float[Array, ""]) -> dict[str, Any]:
    """Regrows all pruned layers of a network.

    Weights that grow start at zero; so does what is masked.

    Args:
        variables: All collections of a network with scores of single weights.
        growth: A tree like `params`: see `regrow`.
        share: Share of each layer's kept weights to drop, rounded up to whole weights; scalar in
            [0, 1], may be traced.

    Returns:
        Variables with new scores and weights, with the same rates and kept counts.
    """
    rates, grown_by = rates_of(variables), leaves_by_path(growth)
    weights, scores = leaves_by_path(variables["params"]), leaves_by_path(variables["scores"])
    for path, rate in rates.items():
        weight, size = weights[path], weights[path].size
        kept = kept_weights(rate, size)
        dropped = jnp.ceil(share * kept.astype(jnp.float32)).astype(jnp.int32)
        before = weight_mask(scores[path], rate)
        after = regrow(before, weight, grown_by[path], jnp.minimum(dropped, kept))
        weights[path] = jnp.where(before * after > 0, weight, 0.0)
        scores[path] = ranking(after, weights[path], grown_by[path])
    return _with(variables, params=weights, scores=scores)


def resized(variables: Variables, logits: Mapping[Path, Any]) -> dict[str, Any]:
    """Changes the rates of layers: drops their smallest weights, or adds the next to grow.

    Weights that are added start at zero.

    Args:
        variables: All collections of a network with scores of single weights.
        logits: New rate logits by kernel path; other layers are not changed.

    Returns:
        Variables with new rates, scores and weights.
    """
    rates, minima = rates_of(variables), leaves_by_path(variables["minimum_rates"])
    weights, scores = leaves_by_path(variables["params"]), leaves_by_path(variables["scores"])
    for path, logit in logits.items():
        new = rate_from_logit(logit, minima[path])
        weights[path], scores[path] = _resized(weights[path], scores[path], rates[path], new)
    changed = leaves_by_path(variables["rates"]) | dict(logits)
    return _with(variables, params=weights, scores=scores, rates=changed)


@jax.jit  # op by op masks are compiled anew with every call
def _resized(weights: Kernel, scores: Scores, rate: Any, new: Any) -> tuple[Kernel, Scores]:
    """Returns a layer's weights and scores at a new rate."""
    before = weight_mask(scores, rate)
    scores = ranking(before, weights, scores)
    after = weight_mask(scores, new)
    return jnp.where(before * after > 0, weights, 0.0), scores


def _with(variables: Variables, **leaves: Mapping[Path, Any]) -> dict[str, Any]:
    return {**variables, **{name: tree_of_leaves(each) for name, each in leaves.items()}}
