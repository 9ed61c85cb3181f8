"""Realised sparsity: what the masks keep, counted, not what the rates promise."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path, rates_of
from harp_jax.pruning.masks import kernel_mask
from harp_jax.types import Rate, Scores, Variables


class LayerSparsity(NamedTuple):
    """Weights of one layer's kernel.

    Attributes:
        layer: The layer's name, e.g. 'conv1'.
        parameters: Number of weights in its kernel.
        kept: Number of weights its mask keeps.
        rate: Its compression rate in (0, 1], or None in a dense network.
    """

    layer: str
    parameters: int
    kept: int
    rate: float | None


def layer_sparsity(variables: Variables) -> list[LayerSparsity]:
    """Counts kernel weights per layer. Biases and BatchNorm are not pruned and not counted.

    Args:
        variables: Variables of a pruned or dense network.

    Returns:
        One row per convolution and dense layer, in tree order.
    """
    params = leaves_by_path(variables["params"])
    scores = leaves_by_path(variables.get("scores", {}))
    rates = rates_of(variables) if scores else {}
    rows = []
    for path in kernel_paths(variables["params"]):
        kernel = params[path]
        if path not in scores:
            rows.append(LayerSparsity(layer_name(path), kernel.size, kernel.size, None))
            continue
        kept = int(_kept(scores[path], rates[path], kernel.shape))
        rows.append(LayerSparsity(layer_name(path), kernel.size, kept, float(rates[path])))
    return rows


@functools.partial(jax.jit, static_argnames="shape")  # op by op a mask takes seconds to compile
def _kept(scores: Scores, rate: Rate, shape: tuple[int, ...]) -> Int[Array, ""]:
    mask = kernel_mask(scores, rate, len(shape))
    return jnp.broadcast_to(mask, shape).sum(dtype=jnp.int32)
