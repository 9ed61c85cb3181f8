"""Turns a network with pruned channels into the smaller dense network."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from harp_jax.models.convnet import ConvNet
from harp_jax.models.vgg import POOL, VGG
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.layers import Path, bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.sparsity import channels_read
from harp_jax.types import Variables

Widths = Mapping[str, int]  # number of outputs by a layer's name


def compact(
    model: nn.Module, variables: Variables, architecture: Architecture
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network without the channels that no layer reads.

    It has the same outputs, up to float rounding, and as many FLOPs as
    `sparsity.layer_sparsity` counts.

    Args:
        model: A `ConvNet` or `VGG`, whose layers follow one another.
        variables: The model's variables, with the scores and rates of channels.
        architecture: The result of `channels.trace` for the model.

    Returns:
        The smaller model and its variables, without scores and rates.

    Raises:
        ValueError: For another kind of model.
    """
    if type(model) not in _NARROWED:
        kinds = ", ".join(kind.__name__ for kind in _NARROWED)
        raise ValueError(f"model={type(model).__name__}: allowed are {kinds}")
    plain = jax.device_get(jax.jit(bake)(variables))
    leaves = leaves_by_path(plain)
    widths = {}
    for group in architecture.groups:
        kept = np.flatnonzero(channels_read(variables, group))
        for path in group.writers:
            widths[path[0]] = len(kept)
            _take(leaves, path[:-1], {"kernel": -1, "bias": -1}, kept)
        for path in group.readers:
            inputs = leaves["params", *path].shape[-2]
            repeats = np.arange(0, inputs, group.size)[:, None]  # of flattened feature maps
            _take(leaves, path[:-1], {"kernel": -2}, (repeats + kept).ravel())
        for path in group.norms:
            _take(leaves, path, dict.fromkeys(("scale", "bias", "mean", "var"), -1), kept)
    return _NARROWED[type(model)](model, widths), tree_of_leaves(leaves)


def _take(
    leaves: dict[Path, np.ndarray], module: Path, axes: Mapping[str, int], kept: np.ndarray
) -> None:
    """Keeps some entries along an axis of the named leaves of a module."""
    for path in leaves:
        if path[1:-1] == module and path[-1] in axes:
            leaves[path] = leaves[path].take(kept, axes[path[-1]])


def _narrow_convnet(model: ConvNet, widths: Widths) -> ConvNet:
    convolutions = [widths[f"conv{number}"] for number in range(1, len(model.widths) + 1)]
    return model.clone(widths=tuple(convolutions), hidden=widths["dense1"])


def _narrow_vgg(model: VGG, widths: Widths) -> VGG:
    plan, number = [], 0
    for entry in model.plan:
        number += entry != POOL
        plan.append(POOL if entry == POOL else widths[f"conv{number}"])
    hidden = [widths[f"dense{number}"] for number in range(1, len(model.hidden) + 1)]
    return model.clone(plan=tuple(plan), hidden=tuple(hidden))


_NARROWED: dict[type[nn.Module], Callable[[Any, Widths], nn.Module]] = {
    ConvNet: _narrow_convnet,
    VGG: _narrow_vgg,
}
