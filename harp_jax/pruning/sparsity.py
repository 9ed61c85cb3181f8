"""Realised sparsity: counts what the masks keep, which rates only approximate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from harp_jax.pruning.channels import Architecture, Group
from harp_jax.pruning.layers import layer_name, leaves_by_path, rates_of, weight_paths
from harp_jax.pruning.masks import channel_mask, weight_mask
from harp_jax.types import Rate, Scores, Variables


class LayerSparsity(NamedTuple):
    """Weights and FLOPs of one layer's kernel, or of other weights, which are not pruned.

    Attributes:
        layer: The layer's name, e.g. 'conv1'; see `layers.layer_name`.
        parameters: Number of weights in its kernel.
        kept: Number of weights that remain.
        rate: Compression rate in (0, 1], or None if the layer is not pruned.
        flops: FLOPs of the whole kernel on one image (see `costs`), or None if not asked for; 0 for
            weights that are no layer's.
        kept_flops: FLOPs of the weights that remain, or None.
    """

    layer: str
    parameters: int
    kept: int
    rate: float | None
    flops: int | None = None
    kept_flops: int | None = None


def layer_sparsity(
    variables: Variables, architecture: Architecture | None = None
) -> list[LayerSparsity]:
    """Counts kernel weights per layer. Biases and BatchNorm are not pruned and not counted.

    A weight remains if its mask keeps it. Where the architecture has groups, some layer must also
    read the weight's output: channels that no layer reads are removed from the layers that write
    them, as in the stored network.

    Args:
        variables: Variables of a pruned or dense network.
        architecture: The network's architecture. It adds FLOPs and, with groups, removes outputs
            that no layer reads.

    Returns:
        One row per array of weights (`layers.weight_paths`), in their order.
    """
    params = leaves_by_path(variables["params"])
    scores = leaves_by_path(variables.get("scores", {}))
    rates = rates_of(variables) if scores else {}
    layers = {layer.path: layer for layer in architecture.layers} if architecture else {}
    groups = architecture.groups if architecture else ()
    outputs = {
        path: int(channels_read(variables, group).sum())
        for group in groups
        for path in group.writers
    }
    rows = []
    for path in weight_paths(variables["params"]):
        kernel, kept, rate = params[path], params[path].size, None
        if path in scores:
            kept = _kept(jnp.asarray(scores[path]), rates[path], kernel.size)
            rate = float(rates[path])
        if path in outputs:  # masks of channels are the same for every output
            kept = kept // kernel.shape[-1] * outputs[path]
        row = LayerSparsity(layer_name(path), kernel.size, kept, rate)
        if architecture is not None:
            per_weight = layers[path].flops_per_weight if path in layers else 0
            row = row._replace(flops=per_weight * kernel.size, kept_flops=per_weight * kept)
        rows.append(row)
    return rows


def channels_read(variables: Variables, group: Group) -> np.ndarray:
    """Finds the channels of a group that at least one reader keeps.

    Args:
        variables: Variables of a network.
        group: One of its groups.

    Returns:
        Bool `[size]`; all True where the group cannot be pruned or the network is dense.
    """
    scores = leaves_by_path(variables.get("scores", {}))
    if not group.prunable or any(path not in scores for path in group.readers):
        return np.ones(group.size, bool)
    rates = rates_of(variables)
    return np.any([_channels(scores[path], rates[path]) > 0 for path in group.readers], axis=0)


def _kept(scores: Scores, rate: Rate, size: int) -> int:
    """Counts the weights that a mask keeps of a kernel with `size` weights."""
    if scores.ndim == 1:
        return int(_channels(scores, rate).sum()) * (size // scores.size)
    return int(_weights(scores, rate))


# Compiled: op by op a mask takes seconds to compile.
_channels = jax.jit(channel_mask)


@jax.jit
def _weights(scores: Scores, rate: Rate) -> Int[Array, ""]:
    return weight_mask(scores, rate).sum(dtype=jnp.int32)
