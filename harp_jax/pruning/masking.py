"""How masks enter training: the kernels that a step computes with, and what follows its update.

Besides the plain way, `live` spends the budget on live connections only. A unit (a channel, or an
output of a dense layer) is dead if nothing feeds it, all weights that write it being masked, or if
nothing reads it. What comes out of it is a constant. Weights that read it add a constant to what
the next layer's BatchNorm or bias sets anyway, and weights that write what nobody reads do nothing;
yet all of them count. Under `live`

- a dead unit is removed for good: the scores of all weights at it become zero, so that they rank
  last, and a zero score has no gradient;
- a rate learns from what a larger rate would add: from the weights that are masked, dead units'
  excepted. HARP's gradient sums over all weights of the layer. Before a BatchNorm that hardly
  differs, since the sum over the kept weights of a filter, whose scale does not matter, is zero. In
  a classifier that sum is the gradient of the logits' scale, and it can hold a rate up where
  nothing is left to be added.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from harp_jax.pruning.channels import Group
from harp_jax.pruning.layers import Path, bake, kernel_paths, leaves_by_path, tree_of_leaves
from harp_jax.pruning.masks import weight_mask
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Kernel, Scalar, Scores, Variables


class Masking(NamedTuple):
    """How masks enter a training step.

    Attributes:
        seen: (all collections) -> the `params` that the passes compute with, differentiable.
        follow: (variables after an update, those before, the params that were seen) -> the
            variables that the step hands on.
    """

    seen: Callable[[Variables], Any]
    follow: Callable[[dict[str, Any], Variables, Any], dict[str, Any]] = (
        lambda variables, before, params: variables
    )


PLAIN = Masking(seen=lambda variables: bake(variables)["params"])


def live(groups: Sequence[Group]) -> Masking:
    """Masks of single weights on live connections, see above.

    Args:
        groups: The units: channels that are written and read together (`channels.trace`). Those of
            images and classes are always live.

    Returns:
        The masking, for variables with scores.
    """
    units = [group for group in groups if group.prunable]

    def follow(variables: dict[str, Any], before: Variables, params: Any) -> dict[str, Any]:
        kernels = leaves_by_path(params)
        scores, old = leaves_by_path(variables["scores"]), leaves_by_path(before["scores"])
        scores = {path: jnp.where(old[path] == 0, 0.0, leaf) for path, leaf in scores.items()}
        for group in units:
            _silence(scores, group, live_units(group, kernels))
        return {**variables, "scores": tree_of_leaves(scores)}

    return Masking(lambda variables: bake(variables, live_kernel)["params"], follow)


def live_units(group: Group, kernels: Any) -> Bool[Array, " size"]:
    """Which units of a group some weight writes and some weight reads.

    Args:
        group: Of the network.
        kernels: Masked kernels by path, HWIO or IO.

    Returns:
        A flag for every unit.
    """
    written = [(kernels[path] != 0).reshape(-1, group.size).any(0) for path in group.writers]
    read = [(_by_unit(kernels[path], group.size) != 0).any((0, 2)) for path in group.readers]
    return jnp.stack(written).any(0) & jnp.stack(read).any(0)


def live_weights(params: Any, groups: Sequence[Group]) -> dict[Path, int]:
    """How many of a network's weights join the images with the classes.

    Args:
        params: Masked kernels among them (`layers.bake`).
        groups: All channels of the network (`channels.trace`).

    Returns:
        By kernel path, the weights that are left when dead units are removed, and those that die of
        that, until none is dead.
    """
    kernels = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
    kernels = {path: kernels[path] for path in kernel_paths(params)}
    before = -1
    while (left := sum(np.count_nonzero(kernel) for kernel in kernels.values())) != before:
        before = left
        for group in filter(lambda group: group.prunable, groups):
            _silence(kernels, group, np.asarray(live_units(group, kernels)))
    return {path: int(np.count_nonzero(kernel)) for path, kernel in kernels.items()}


def _silence(kernels: dict[Path, Any], group: Group, alive: Any) -> None:
    """Sets entries at the dead units of a group to zero: what writes and what reads them."""
    for path in group.writers:
        columns = kernels[path].reshape(-1, group.size) * alive[None]
        kernels[path] = columns.reshape(kernels[path].shape)
    for path in group.readers:
        rows = _by_unit(kernels[path], group.size) * alive[None, :, None]
        kernels[path] = rows.reshape(kernels[path].shape)


def _by_unit(kernel: Any, size: int) -> Any:
    """A kernel as `[features, units it reads, out]`: flattened features have units last."""
    return kernel.reshape(-1, size, kernel.shape[-1])


def live_kernel(kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar) -> Kernel:
    """`layers.masked_kernel` whose rate learns from the weights that it would add.

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
