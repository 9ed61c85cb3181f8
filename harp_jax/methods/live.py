"""Live connections: spends the budget on weights that connect the images with the classes.

A unit (a channel, or an output of a dense layer) is dead if all weights that write it are masked,
or if all weights that read it are masked. A unit that nothing writes has a constant output: weights
that read it only add a constant, which the next layer's BatchNorm or bias sets anyway. A unit that
nothing reads has no effect. Yet the weights of dead units count against the budget. With live
connections

- a dead unit is removed for good (`prune.live_after`: from some update on): the scores of all its
  weights become zero, so that they rank last, and a zero score has no gradient;
- a rate learns from the weights that a larger rate would add: the masked ones, except those of dead
  units. HARP's gradient sums over all weights of the layer. Before a BatchNorm that makes little
  difference: the scale of a filter does not matter there, so the sum over its kept weights is zero.
  In a classifier that sum is the gradient of the logits' scale. It can keep a rate high although
  no weight is left to add.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from harp_jax.methods.base import Links, Masking, Setting
from harp_jax.methods.wrapped import Wrapped
from harp_jax.pruning.channels import Group
from harp_jax.pruning.layers import bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import live_kernel, live_units, silence
from harp_jax.settings import check
from harp_jax.types import Variables


def live_masking(groups: Sequence[Group], after: int = 0) -> Masking:
    """Builds masks of single weights on live connections, see above.

    Args:
        groups: The units: channels that are written and read together (`channels.trace`). Units of
            images and classes are always live.
        after: Updates before which no unit is removed, >= 0: what is dead until then may come back.

    Returns:
        The masking, for variables with scores. Scores that are zero are to stay so (`keep_zeros`).
    """
    units = [group for group in groups if group.prunable]

    def remove(variables: dict[str, Any], params: Any) -> dict[str, Any]:
        kernels, scores = leaves_by_path(params), leaves_by_path(variables["scores"])
        for group in units:
            silence(scores, group, live_units(group, kernels))
        return {**variables, "scores": tree_of_leaves(scores)}

    def follow(
        variables: dict[str, Any], before: Variables, params: Any, updates: Any
    ) -> dict[str, Any]:
        del before
        if after == 0:
            return remove(variables, params)
        return lax.cond(updates >= after, remove, lambda kept, _: kept, variables, params)

    return Masking(lambda variables: bake(variables, live_kernel)["params"], follow)


def keep_zeros() -> optax.GradientTransformation:
    """Builds a transformation under which what is zero stays zero, whatever its momentum."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, value: jnp.where(value == 0, 0.0, update), updates, params
        )
    )


@dataclasses.dataclass(frozen=True)
class Live(Wrapped):
    """Spends the budget of a method that learns masks on live connections only, see above.

    Attributes:
        method: The method inside.
        after: Share of the stage's updates before which no unit is removed, in [0, 1].
    """

    after: float = 0.0

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "after", 0 <= self.after <= 1, "numbers in [0, 1]")

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns the links of the method inside; the scores of removed units stay zero."""
        return {**self.method.links(setting, variables), "after_scores": keep_zeros()}

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns masks on live connections."""
        del variables
        return live_masking(setting.scheme.groups, setting.updates(self.after))
