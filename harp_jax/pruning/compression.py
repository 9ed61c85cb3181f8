"""The compression (hardware) loss L_hw, its step-wise weight, and its gradient as an optax link.

Costs are given as a `costs.Cost`, or as plain parameter counts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from harp_jax.pruning.costs import Cost, WeightCost
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Scalar

# L_hw counts as zero once it rounds to zero at this many decimals (the authors' rule).
REACHED_DECIMALS = 4
# Updates done -> the target of the moment.
TargetAt = Callable[[Int[Array, ""]], Scalar]


def as_cost(costs: Any) -> Cost:
    """Returns parameter counts as a `Cost`, and a `Cost` unchanged."""
    return costs if isinstance(costs, Cost) else WeightCost(costs)


def soft_rate(rates: Any, costs: Any) -> Scalar:
    """Computes the share of the dense cost that the (continuous) rates keep.

    For parameter counts n_l it is sum(n_l * a_l) / sum(n_l).

    Args:
        rates: Scalars in (0, 1], as a sequence or any tree.
        costs: Positive numbers in the same structure, parameter counts; or a `Cost`.

    Returns:
        A scalar in (0, 1].
    """
    return as_cost(costs).soft_share(rates)


def compression_loss(rates: Any, costs: Any, target: float | Scalar) -> Scalar:
    """Computes L_hw = max(soft_rate / target - 1, 0) (HARP, Equation 5; for FLOPs, its appendix).

    It uses the continuous rates; `sparsity.layer_sparsity` counts what the masks really keep. The
    gradient is the slope above the target, zero below it, and half the slope exactly at it.

    Args:
        rates: Compression rates in (0, 1], as a sequence or any tree of scalars.
        costs: Parameter counts, in the same structure; or a `Cost`.
        target: Wanted share of the dense cost, in (0, 1].

    Returns:
        The loss, a scalar >= 0, not multiplied by gamma.
    """
    return jnp.maximum(soft_rate(rates, costs) / target - 1.0, 0.0)


def target_reached(loss: Scalar) -> Bool[Array, ""]:
    """Returns True where a compression loss rounds to zero."""
    return jnp.round(loss, REACHED_DECIMALS) == 0.0


class GammaState(NamedTuple):
    """State of the step-wise weight.

    Attributes:
        epoch: Current epoch, from 0.
        gamma: Weight of the compression loss in this epoch.
        frozen: Whether the target was reached in an earlier epoch, so that gamma stays.
    """

    epoch: Int[Array, ""]
    gamma: Scalar
    frozen: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class StepwiseGamma:
    """The rule of `stepwise_gamma`."""

    gamma0: float

    def init(self) -> GammaState:
        """Returns the state of epoch 0: gamma = gamma0, not frozen."""
        return GammaState(jnp.int32(0), jnp.float32(self.gamma0), jnp.bool_(False))

    def update(self, state: GammaState, loss_at_epoch_end: Float[Array, ""]) -> GammaState:
        """Returns the next epoch's state, given the compression loss at the end of this one."""
        frozen = state.frozen | target_reached(jnp.asarray(loss_at_epoch_end))
        epoch = state.epoch + 1
        grown = jnp.float32(self.gamma0) * (epoch + 1).astype(jnp.float32)
        return GammaState(epoch, jnp.where(frozen, state.gamma, grown), frozen)


def stepwise_gamma(gamma0: float) -> StepwiseGamma:
    """Builds the step-wise weight of the compression loss (HARP, Section 3.3).

    gamma is (epoch + 1) * gamma0. At the end of the first epoch in which the loss rounds to zero at
    four decimals, gamma stays at that epoch's value for good.

    Args:
        gamma0: First value and growth per epoch, > 0.

    Returns:
        A pure rule: `init() -> state`, `update(state, loss_at_epoch_end) -> state`, `state.gamma`.
    """
    return StepwiseGamma(gamma0)


class CompressionState(NamedTuple):
    """State of `add_compression_gradient`: steps done and the weight's state."""

    count: Int[Array, ""]
    gamma: GammaState


def add_compression_gradient(
    costs: Any,
    target: float,
    minimum: float,
    gamma0: float,
    updates_per_epoch: int,
    target_at: TargetAt | None = None,
) -> optax.GradientTransformation:
    """Adds gamma * dL_hw/dlogit to the gradients of the rate logits.

    The first link of the rates' optax chain. Its state holds the step-wise gamma with its epoch
    counter and frozen flag, so they are checkpointed with the optimiser. An epoch ends after
    `updates_per_epoch` updates; the rule then sees the loss of the rates as that epoch left them.

    Args:
        costs: Parameter counts, as a tree in the structure of the logits; or a `Cost`.
        target: Wanted share of the dense cost, in (0, 1].
        minimum: Smallest rate a_min, in [0, 1).
        gamma0: See `stepwise_gamma`.
        updates_per_epoch: Updates in an epoch, >= 1.
        target_at: Function from the number of updates done to the target in the gradient, in
            (0, 1]; None takes `target`. Gamma freezes at `target` in any case.

    Returns:
        A gradient transformation over the tree of logits.

    Raises:
        ValueError: If the target, the minimum or the number of updates is not of these.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target={target}: allowed are numbers in (0, 1]")
    if not 0 <= minimum < 1:
        raise ValueError(f"minimum={minimum}: allowed are numbers in [0, 1)")
    if updates_per_epoch < 1:
        raise ValueError(f"updates_per_epoch={updates_per_epoch}: allowed are whole numbers >= 1")
    rule = stepwise_gamma(gamma0)

    def loss_of(logits: Any, target: float | Scalar) -> Scalar:
        rates = jax.tree.map(lambda logit: rate_from_logit(logit, minimum), logits)
        return compression_loss(rates, costs, target)

    def init(params: Any) -> CompressionState:
        del params
        return CompressionState(jnp.int32(0), rule.init())

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError("params=None: the compression gradient needs the rate logits")
        moment = target if target_at is None else target_at(state.count)
        loss, gradient = jax.value_and_grad(loss_of)(params, moment)
        if target_at is not None:
            loss = loss_of(params, target)
        epoch_begins = (state.count > 0) & (state.count % updates_per_epoch == 0)
        gamma = lax.cond(epoch_begins, rule.update, lambda kept, _: kept, state.gamma, loss)
        updates = jax.tree.map(lambda u, g: u + gamma.gamma * g, updates, gradient)
        return updates, CompressionState(state.count + 1, gamma)

    return optax.GradientTransformation(init, update)
