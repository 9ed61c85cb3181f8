"""What a layer costs, in the unit of the budget."""

from collections.abc import Sequence

from harp_jax.pruning.layers import Path, kernel_paths, leaves_by_path
from harp_jax.types import Variables


def parameter_costs(params: Variables, paths: Sequence[Path] | None = None) -> dict[Path, int]:
    """Number of weights of every kernel. Biases and BatchNorm are never pruned and not counted.

    Args:
        params: The `params` collection (arrays or shape structs).
        paths: The kernels to count; by default all of them.

    Returns:
        Kernel sizes by path, in tree order.
    """
    leaves = leaves_by_path(params)
    return {path: leaves[path].size for path in (paths or kernel_paths(params))}
