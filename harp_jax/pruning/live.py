"""Live connections: the units and weights that connect the images with the classes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from harp_jax.pruning.channels import Group
from harp_jax.pruning.layers import Path, kernel_paths, leaves_by_path
from harp_jax.pruning.masks import weight_mask
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Kernel, Scalar, Scores


def live_units(group: Group, kernels: Any) -> Bool[Array, " size"]:
    """Finds the units of a group that at least one weight writes and at least one weight reads.

    Args:
        group: A group of the network.
        kernels: Masked kernels by path, HWIO or IO.

    Returns:
        A flag for every unit.
    """
    read = [(by_unit(kernels[path], group.size) != 0).any((0, 2)) for path in group.readers]
    return _written(group, kernels) & jnp.stack(read).any(0)


def live_weights(params: Any, groups: Sequence[Group]) -> dict[Path, int]:
    """Counts the weights that connect the images with the classes.

    Args:
        params: The `params` collection with masked kernels (`layers.bake`).
        groups: All channels of the network (`channels.trace`).

    Returns:
        The number of live weights, by kernel path. Dead units are removed, then the units that
        are dead without them, until no unit is dead.
    """
    return _counts(live_kernels(params, groups))


def live_kernels(params: Any, groups: Sequence[Group]) -> dict[Path, Any]:
    """Returns masked kernels without the weights that `live_weights` does not count, by path.

    Args:
        params: The `params` collection with masked kernels (`layers.bake`).
        groups: All channels of the network (`channels.trace`).

    Returns:
        NumPy arrays, zero where a weight is masked or at a dead unit.
    """
    return _left(params, groups, live_units)


def unreached(params: Any, groups: Sequence[Group]) -> list[Path]:
    """Finds the layers of a network without any live weight that the images do not reach.

    Args:
        params: The `params` collection with masked kernels (`layers.bake`).
        groups: All channels of the network (`channels.trace`).

    Returns:
        The kernel paths of the layers that no path of weights leads to from the images; empty if
        some path leads from them to the classes.
    """
    if any(live_weights(params, groups).values()):
        return []
    return [path for path, left in _counts(_left(params, groups, _written)).items() if left == 0]


def _left(
    params: Any, groups: Sequence[Group], alive: Callable[[Group, Any], Bool[Array, " size"]]
) -> dict[Path, Any]:
    """Removes the units that are not alive until all are; returns the kernels that are left."""
    kernels = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
    kernels = {path: kernels[path] for path in kernel_paths(params)}
    before = -1
    while (left := sum(np.count_nonzero(kernel) for kernel in kernels.values())) != before:
        before = left
        for group in filter(lambda group: group.prunable, groups):
            silence(kernels, group, np.asarray(alive(group, kernels)))
    return kernels


def _counts(kernels: dict[Path, Any]) -> dict[Path, int]:
    return {path: int(np.count_nonzero(kernel)) for path, kernel in kernels.items()}


def _written(group: Group, kernels: Any) -> Bool[Array, " size"]:
    """Finds the units of a group that at least one weight writes."""
    written = [(kernels[path] != 0).reshape(-1, group.size).any(0) for path in group.writers]
    return jnp.stack(written).any(0)


def silence(kernels: dict[Path, Any], group: Group, alive: Any) -> None:
    """Sets the entries at the dead units of a group to zero, in place.

    Args:
        kernels: Arrays of the kernels' shapes by path; those that write or read the group change.
        group: A group of the network.
        alive: A flag for every unit.
    """
    for path in group.writers:
        columns = kernels[path].reshape(-1, group.size) * alive[None]
        kernels[path] = columns.reshape(kernels[path].shape)
    for path in group.readers:
        rows = by_unit(kernels[path], group.size) * alive[None, :, None]
        kernels[path] = rows.reshape(kernels[path].shape)


def by_unit(kernel: Any, size: int) -> Any:
    """Reshapes a kernel to `[features, units, out]`; flattened features have units last.

    Args:
        kernel: HWIO or IO, of a layer that reads the units. That of a depthwise convolution,
            `[height, width, 1, units]`, becomes `[features, units, 1]`.
        size: Number of units.
    """
    depthwise = kernel.shape[-2:] == (1, size)
    return kernel.reshape(-1, size, 1 if depthwise else kernel.shape[-1])


def live_kernel(kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar) -> Kernel:
    """Computes `layers.masked_kernel`; the rate learns from the weights that it would add.

    Args:
        kernel: `[height, width, in, out]` or `[in, out]`.
        scores: The kernel's shape; zero for the weights of dead units.
        logit: Scalar rate logit.
        minimum: Smallest rate, in [0, 1).

    Returns:
        The same masked kernel, and the same gradients but for the logit's.
    """
    rate = rate_from_logit(logit, minimum)
    held = lax.stop_gradient(rate)
    mask = weight_mask(scores, held)
    addable = (1.0 - mask) * (scores != 0)
    return kernel * (mask + addable * (rate - held))
