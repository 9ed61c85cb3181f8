"""What a layer costs, in the unit of the budget."""

from collections.abc import Sequence

from flax.traverse_util import flatten_dict

from harp_jax.pruning.layers import Path, kernel_paths
from harp_jax.types import Variables


def parameter_costs(params: Variables, paths: Sequence[Path] | None = None) -> dict[Path, int]:
    """Number of weights of every kernel. Biases and BatchNorm are never pruned and not counted.

    Args:
        params: The `params` collection (arrays or shape structs).
        paths: The kernels to count; by default all of them.

    Returns:
        Kernel sizes by path, in tree order.
    """
    leaves = flatten_dict(params)
    return {path: leaves[path].size for path in (paths or kernel_paths(params))}
