"""Removes what cannot change the logits: units that no kept weight reads."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from harp_jax.pruning import channels
from harp_jax.pruning.channels import Group
from harp_jax.pruning.layers import Path, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import by_unit
from harp_jax.types import Variables

_SILENT = {"kernel": 0.0, "bias": 0.0, "scale": 0.0, "mean": 0.0, "var": 1.0}


def without_unread(
    network: nn.Module, variables: Variables, image_shape: Sequence[int]
) -> dict[str, Any]:
    """Silences units that no kept weight reads, until all that are left are read.

    Such a unit is a channel, or an output of a dense layer. All that makes it gets neutral values:
    kernels, biases and BatchNorm's scales and means 0, its variances 1. The logits stay the same
    bits, since every weight that reads the unit is 0.

    Args:
        network: A linen module.
        variables: Its plain variables, masks applied, as NumPy arrays.
        image_shape: (height, width, channels).

    Returns:
        Variables of the same shapes. Networks that `channels.trace` refuses keep theirs.
    """
    try:
        groups = channels.trace(network, image_shape).prunable
    except ValueError:
        return dict(variables)
    leaves, before = leaves_by_path(variables), -1
    while (unread := [~_read(leaves, group) for group in groups]) and before != (
        before := sum(int(units.sum()) for units in unread)
    ):
        for group, units in zip(groups, unread, strict=True):
            for module in (*(path[:-1] for path in group.writers), *group.norms):
                _silence(leaves, module, units)
    return tree_of_leaves(leaves)


def _read(leaves: dict[Path, Any], group: Group) -> np.ndarray:
    """Returns which units of a group some weight reads; flattened features have units last."""
    kernels = [leaves["params", *path] for path in group.readers]
    return np.any([(by_unit(k, group.size) != 0).any((0, 2)) for k in kernels], axis=0)


def _silence(leaves: dict[Path, Any], module: Path, units: np.ndarray) -> None:
    for path, array in leaves.items():
        if path[1:-1] == module and path[-1] in _SILENT:
            which = np.tile(units, array.shape[-1] // units.size)  # also of flattened features
            leaves[path] = np.where(which, np.float32(_SILENT[path[-1]]), array)
