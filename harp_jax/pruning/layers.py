"""Adds scores and rates to the variables of a network, and applies the masks.

A pruned network carries three collections beside `params` and `batch_stats`, each with one leaf at
the path of every kernel:

- `scores`: the kernel's shape (weight granularity) or `[channels]` of its input (channel
  granularity);
- `rates`: the scalar logit of the layer's compression rate;
- `minimum_rates`: the scalar a_min that turns the logit into a rate. It never trains. It stands
  beside the logits so that any checkpoint tells the rates.

Variables without these collections are those of a plain dense network. `bake` returns such
variables, with the masks applied to the kernels.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jax.core import Tracer

from harp_jax.pruning.masks import kernel_mask
from harp_jax.pruning.rates import logit_from_rate, rate_from_logit
from harp_jax.pruning.scores import Granularity, initial_scores
from harp_jax.types import Kernel, Rate, Scalar, Scores, Variables

PRUNING_COLLECTIONS = ("scores", "rates", "minimum_rates")
Path = tuple[str, ...]


def masked_kernel(kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar) -> Kernel:
    """Computes the kernel that the network uses: kernel * M(scores, rate).

    Args:
        kernel: `[height, width, in, out]` or `[in, out]`.
        scores: The kernel's shape, or `[channels]`: see `masks.kernel_mask`.
        logit: Scalar rate logit.
        minimum: Scalar smallest rate, in [0, 1).

    Returns:
        The masked kernel; differentiable in all of kernel, scores and logit (straight through).
    """
    return kernel * kernel_mask(scores, rate_from_logit(logit, minimum), kernel.shape)


def leaves_by_path(tree: Variables) -> dict[Path, Any]:
    """Returns the leaves of a nested dict, by path."""
    return dict(traverse_util.flatten_dict(dict(tree)))


def tree_of_leaves(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves by path; the inverse of `leaves_by_path`."""
    return traverse_util.unflatten_dict(dict(leaves))


def layer_name(path: Path) -> str:
    """Returns the name of a kernel's layer: ('block1', 'conv', 'kernel') -> 'block1/conv'.

    Other weights keep their whole name: ('embed', 'embedding') -> 'embed/embedding'.
    """
    return "/".join(path[:-1] if path[-1] == "kernel" else path)


def kernel_paths(params: Variables) -> list[Path]:
    """Returns the paths of all kernels: those of convolutions and dense layers, and others' if any.

    They are in natural order of their names (conv2 before conv10). The models name their layers so
    that this is the order of the network.
    """
    return [path for path in weight_paths(params) if path[-1] == "kernel"]


def weight_paths(params: Variables) -> list[Path]:
    """Returns the paths of all weights, in the order of `kernel_paths`.

    Weights are kernels, and all other arrays of several axes but biases: embeddings, say.
    """
    found = [
        path
        for path, leaf in leaves_by_path(params).items()
        if path[-1] == "kernel" or (len(leaf.shape) > 1 and path[-1] != "bias")
    ]
    return sorted(found, key=_natural_order)


def _natural_order(path: Path) -> list[list[int | str]]:
    return [[int(c) if c.isdigit() else c for c in re.split(r"(\d+)", part)] for part in path]


def make_prunable(
    variables: Variables, rates: Mapping[Path, float], minimum: float, granularity: Granularity
) -> dict[str, Any]:
    """Adds scores, rates and minimum rates to the variables of a dense network.

    Every layer has scores of its own. For channels that layers share see `channels.make_prunable`.

    Args:
        variables: At least `params`; other collections are carried over.
        rates: Initial compression rate of every kernel path, in (minimum, 1].
        minimum: Smallest rate a_min, in [0, 1).
        granularity: 'weight' or 'channel'.

    Returns:
        New variables that share the arrays of the given ones.

    Raises:
        ValueError: If a rate is outside of [0, 1].
    """
    kernels = leaves_by_path(variables["params"])
    scores = {path: initial_scores(kernels[path], granularity) for path in rates}
    return add_scores(variables, scores, rates, minimum)


def add_scores(
    variables: Variables, scores: Mapping[Path, Scores], rates: Mapping[Path, Any], minimum: float
) -> dict[str, Any]:
    """Adds given scores, with rates and minimum rates, to the variables of a dense network.

    Args:
        variables: At least `params`; other collections are carried over.
        scores: Scores by kernel path; kernels without scores are not pruned.
        rates: Initial compression rate of the same paths, in (minimum, 1].
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        New variables that share the arrays of the given ones.

    Raises:
        ValueError: If a rate is outside of [0, 1]; rates that are traced are not checked.
    """
    for path, rate in rates.items():
        if not (isinstance(rate, Tracer) or 0 <= float(rate) <= 1):
            name = layer_name(path)
            raise ValueError(f"rates[{name!r}]={float(rate):g}: allowed are numbers in (0, 1]")
    added = {
        "scores": dict(scores),
        "rates": {path: logit_from_rate(rate, minimum) for path, rate in rates.items()},
        "minimum_rates": {path: jnp.float32(minimum) for path in rates},
    }
    return {**variables, **{name: tree_of_leaves(leaves) for name, leaves in added.items()}}


def rates_of(variables: Variables) -> dict[Path, Rate]:
    """Computes the compression rate of every pruned kernel, by path."""
    logits, minima = leaves_by_path(variables["rates"]), leaves_by_path(variables["minimum_rates"])
    return {path: rate_from_logit(logits[path], minima[path]) for path in logits}


def bake(variables: Variables, masked: Callable[..., Kernel] = masked_kernel) -> dict[str, Any]:
    """Applies the masks to the kernels and drops the pruning collections.

    Args:
        variables: Variables of a pruned network; those of a dense one are not changed.
        masked: Function that masks a kernel, with the arguments of `masked_kernel`.

    Returns:
        Variables without 'scores', 'rates' and 'minimum_rates' that give the same outputs.
    """
    plain = {name: tree for name, tree in variables.items() if name not in PRUNING_COLLECTIONS}
    if "scores" not in variables:
        return plain
    collections = [leaves_by_path(variables[name]) for name in PRUNING_COLLECTIONS]
    params = leaves_by_path(variables["params"])
    for path in collections[0]:
        params[path] = masked(params[path], *(leaves[path] for leaves in collections))
    return {**plain, "params": tree_of_leaves(params)}
