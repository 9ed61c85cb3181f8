"""Schemes: everything that differs between pruning weights and pruning channels."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import optax

from harp_jax.pruning import channels, layers
from harp_jax.pruning.channels import Architecture, Group
from harp_jax.pruning.costs import Cost, WeightCost, trace_layers
from harp_jax.pruning.layers import Path
from harp_jax.pruning.scores import GRANULARITIES, Granularity
from harp_jax.types import Variables


class Scheme(NamedTuple):
    """How a network is pruned at a granularity; `scheme` builds it.

    Attributes:
        architecture: The network's layers and, for channels, how they are connected.
        cost: The cost that the budget limits.
        make_prunable: (variables of the dense network, rates by kernel path, minimum rate) ->
            variables with scores and rates.
        tie: Gradient transformation that keeps equal the scores and rates that layers share; None
            if layers share none.
        groups: The channels that weights write and read, for live connections; else empty.
    """

    architecture: Architecture
    cost: Cost
    make_prunable: Callable[[Variables, Mapping[Path, float], float], dict[str, Any]]
    tie: optax.GradientTransformation | None
    groups: tuple[Group, ...] = ()


def scheme(
    model: nn.Module, image_shape: Sequence[int], granularity: Granularity, live: bool = False
) -> Scheme:
    """Builds the scheme of a network.

    Args:
        model: Any linen module from NHWC images to logits.
        image_shape: (height, width, channels).
        granularity: 'weight': single weights under a budget of weights. 'channel': the channels
            that layers read, under a budget of FLOPs.
        live: Whether single weights are pruned on live connections. The channels are then traced
            too.

    Returns:
        The scheme.

    Raises:
        ValueError: If the network cannot take such images, calls a layer twice, or has nothing to
            prune; for another granularity.
    """
    if granularity not in GRANULARITIES:
        allowed = ", ".join(GRANULARITIES)
        raise ValueError(f"granularity={granularity!r}: allowed are {allowed}")
    if granularity == "weight":
        architecture = Architecture(tuple(trace_layers(model, image_shape)))
        sizes = {layer.path: math.prod(layer.kernel) for layer in architecture.layers}
        make_prunable = functools.partial(layers.make_prunable, granularity="weight")
        _check_any(architecture, granularity)
        groups = channels.trace(model, image_shape).groups if live else ()
        return Scheme(architecture, WeightCost(sizes), make_prunable, None, groups)
    architecture = channels.joined(channels.trace(model, image_shape))
    _check_any(architecture, granularity)
    return Scheme(
        architecture,
        channels.FlopsCost(architecture),
        functools.partial(channels.make_prunable, architecture=architecture),
        channels.share_gradients(architecture),
    )


def _check_any(architecture: Architecture, granularity: Granularity) -> None:
    if not architecture.layers:
        raise ValueError("has no layer to prune; allowed are networks of nn.Conv and nn.Dense")
    if not architecture.pruned:
        raise ValueError(
            f"granularity={granularity!r}: has no channels that layers read one by one; allowed is"
            " 'weight'"
        )


def stays_dense(architecture: Architecture, params: Variables) -> str | None:
    """Says which weights pruning leaves as they are, beside those that read the images.

    Args:
        architecture: The network's, of its scheme.
        params: The `params` collection, as arrays or shapes.

    Returns:
        A sentence with their number and names; None if there are none.
    """
    leaves = layers.leaves_by_path(params)
    sizes = {path: math.prod(leaves[path].shape) for path in layers.weight_paths(params)}
    known = {layer.path for layer in architecture.layers}
    if architecture.groups:  # the first one is that of the images
        known = {*architecture.pruned, *architecture.groups[0].readers}
        known |= {path for group in architecture.prunable for path in group.writers}
    left = [path for path in sizes if path not in known]
    if not left:
        return None
    reason = "are no layers of nn.Conv, nn.Dense or nn.DenseGeneral"
    if architecture.groups:
        reason = "write or read no channels that layers read one by one"
    count = sum(sizes[path] for path in left)
    names = ", ".join(map(layers.layer_name, left))
    return f"{count:,} of {sum(sizes.values()):,} weights stay dense, they {reason}: {names}"
