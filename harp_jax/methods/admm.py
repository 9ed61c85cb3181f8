"""Robust-ADMM: weights that are pulled to a sparse network while they train.

Ye et al., "Adversarial Robustness vs. Model Compression, or Both?" (ICCV 2019), after Zhang et al.,
"A Systematic DNN Weight Pruning Framework using ADMM" (ECCV 2018). W_l are the weights of a layer,
Z_l the sparse weights that they are pulled to, and U_l the scaled dual variable. Training minimises

    loss(W) + rho / 2 * sum_l ||W_l - Z_l + U_l||^2,

and in regular rounds Z_l becomes the nearest array to W_l + U_l with as many weights as the layer
may keep, U_l grows by W_l - Z_l, and rho grows by a factor.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from harp_jax.methods.base import Links, Masking, Method, Setting
from harp_jax.pruning.layers import Path, leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.masks import weight_mask
from harp_jax.pruning.scores import initial_scores
from harp_jax.settings import check
from harp_jax.types import Kernel, Rate, Scalar, Variables


class AdmmState(NamedTuple):
    """State of `admm`: everything that a resumed run needs.

    Attributes:
        count: Updates done.
        rho: Weight of the penalty.
        rates: Fraction of the weights that each kernel may keep; a tree like the next two.
        sparse: Z, the sparse kernels that the kernels are pulled to.
        dual: U, the scaled dual variables.
    """

    count: Int[Array, ""]
    rho: Scalar
    rates: Any
    sparse: Any
    dual: Any


def keep_largest(weights: Kernel, rate: Rate) -> Kernel:
    """Finds the nearest array (Euclidean) of which `masks.kept_weights(rate, n)` stay.

    Args:
        weights: Any shape, n entries.
        rate: Fraction kept, in [0, 1].

    Returns:
        The weights of largest magnitude, zeros elsewhere; ties as in `masks.weight_mask`.
    """
    return weights * weight_mask(weights, rate)


def next_round(state: AdmmState, weights: Any, growth: float) -> AdmmState:
    """Sets Z to the projection of W + U, then U to U + W - Z, and lets rho grow.

    U is not scaled back when rho grows, as in the published code of Ye et al.

    Args:
        state: State before the round.
        weights: W, in the structure of `state.sparse`.
        growth: Factor of rho, >= 1.

    Returns:
        The state with the same count.
    """
    moved = jax.tree.map(jnp.add, weights, state.dual)
    sparse = jax.tree.map(keep_largest, moved, state.rates)
    dual = jax.tree.map(jnp.subtract, moved, sparse)
    return state._replace(rho=state.rho * growth, sparse=sparse, dual=dual)


def admm(
    rates: Mapping[Path, Any], rho: float, growth: float, steps_per_round: int
) -> optax.GradientTransformation:
    """Adds the gradient of the penalty, rho * (W - Z + U), to that of the training loss.

    It is the first link of the weights' optax chain. Z starts as the projection of the first
    weights, U at zero. A round ends after `steps_per_round` updates.

    Args:
        rates: Fraction of the weights to keep, by path in the tree that is updated; others
            are not pulled.
        rho: First weight of the penalty, > 0.
        growth: Factor of rho from round to round, >= 1.
        steps_per_round: Updates between two rounds, >= 1.

    Returns:
        A gradient transformation over a nested dict.
    """

    def kernels(params: Any) -> Any:
        leaves = leaves_by_path(params)
        return tree_of_leaves({path: leaves[path] for path in rates})

    def init(params: Any) -> AdmmState:
        weights = kernels(params)
        kept = tree_of_leaves({path: jnp.float32(rate) for path, rate in rates.items()})
        return AdmmState(
            count=jnp.int32(0),
            rho=jnp.float32(rho),
            rates=kept,
            sparse=jax.tree.map(keep_largest, weights, kept),
            dual=jax.tree.map(jnp.zeros_like, weights),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError("params=None: the penalty's gradient needs the weights")
        weights = kernels(params)
        round_ends = (state.count > 0) & (state.count % steps_per_round == 0)
        state = lax.cond(
            round_ends, lambda s, w: next_round(s, w, growth), lambda s, _: s, state, weights
        )
        penalty = jax.tree.map(
            lambda w, z, u: state.rho * (w - z + u), weights, state.sparse, state.dual
        )
        leaves = leaves_by_path(updates)
        leaves |= {path: leaves[path] + pull for path, pull in leaves_by_path(penalty).items()}
        return tree_of_leaves(leaves), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _follow(
    variables: dict[str, Any], before: Variables, params: Any, updates: Any
) -> dict[str, Any]:
    del before, params, updates
    kernels = leaves_by_path(variables["params"])
    scores = {path: initial_scores(kernels[path]) for path in leaves_by_path(variables["scores"])}
    return {**variables, "scores": tree_of_leaves(scores)}


# All weights train, without masks. The scores follow them, at weight granularity, so that the
# network that is validated, saved and handed on is the one that keeps the largest weights.
UNMASKED = Masking(seen=lambda variables: variables["params"], follow=_follow)


@dataclasses.dataclass(frozen=True)
class Admm(Method):
    """Robust-ADMM: all weights train, each layer pulled to the nearest sparse one.

    The defaults are those of Ye et al.'s code, which renews the sparse weights after every 20 of
    200 epochs. With fewer or shorter epochs the weights need a larger `rho` to come close to them.

    Attributes:
        rho: First weight of the penalty, > 0.
        growth: Factor of rho at every renewal of the sparse weights, >= 1.
        every: Epochs from one renewal to the next, >= 1.
    """

    rho: float = 1e-3
    growth: float = 1.3
    every: int = 1

    stream: ClassVar = 5
    trains: ClassVar = frozenset({"weights", "norm"})
    granularities: ClassVar = ("weight",)

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "rho", self.rho > 0, "numbers > 0")
        check(self, "growth", self.growth >= 1, "numbers >= 1")
        check(self, "every", self.every >= 1, "whole numbers >= 1")

    def unstable(self, epochs: int, learning_rate: float) -> str | None:
        """Returns the allowed values of `rho` if it is too large for the learning rate.

        Descent follows a penalty of curvature rho only up to about 1 / learning rate.
        """
        rounds = (epochs - 1) // self.every
        last = math.log(self.rho * learning_rate) + rounds * math.log(self.growth)
        if last <= 0:
            return None
        return f"values with rho * growth**{rounds} * prune.learning_rate <= 1"

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns the gradient of the penalty, for the weights."""
        rates = {("params", *path): rate for path, rate in rates_of(variables).items()}
        steps = self.every * setting.updates_per_epoch
        return {"penalty_gradient": admm(rates, self.rho, self.growth, steps)}

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns a masking without masks: the scores follow the weights."""
        del setting, variables
        return UNMASKED
