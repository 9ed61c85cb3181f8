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
        model: A network made by `harp_jax.models.create`.
        image_shape: (height, width, channels).
        granularity: 'weight': single weights under a budget of weights. 'channel': the channels
            that layers read, under a budget of FLOPs.
        live: Whether single weights are pruned on live connections. The channels are then traced
            too.

    Returns:
        The scheme.

    Raises:
        ValueError: If the network cannot take such images, or its channels cannot be pruned; for
            another granularity.
    """
    if granularity not in GRANULARITIES:
        allowed = ", ".join(GRANULARITIES)
        raise ValueError(f"granularity={granularity!r}: allowed are {allowed}")
    if granularity == "weight":
        architecture = Architecture(tuple(trace_layers(model, image_shape)))
        sizes = {layer.path: math.prod(layer.kernel) for layer in architecture.layers}
        make_prunable = functools.partial(layers.make_prunable, granularity="weight")
        groups = channels.trace(model, image_shape).groups if live else ()
        return Scheme(architecture, WeightCost(sizes), make_prunable, None, groups)
    architecture = channels.trace(model, image_shape)
    return Scheme(
        architecture,
        channels.FlopsCost(architecture),
        functools.partial(channels.make_prunable, architecture=architecture),
        channels.share_gradients(architecture),
    )
