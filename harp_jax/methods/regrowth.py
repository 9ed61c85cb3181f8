"""When masks regrow while weights train, and the masking of a step that does it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from harp_jax.methods.base import PLAIN, Masking
from harp_jax.pruning.regrow import regrown

UNTIL = 0.75  # share of a stage after which masks stay, as in RigL


class Timing(NamedTuple):
    """The epochs that begin with a regrowth: regularly, until three quarters of a stage.

    It comes with the first batch of an epoch, so that the weights that grow have trained before the
    epoch's network is validated. The first epoch has none.

    Attributes:
        epochs: Epochs of the stage, >= 1.
        updates_per_epoch: Updates of the optimiser in an epoch, >= 1.
        updates_per_batch: Updates with each batch, >= 1.
        every: Epochs from one regrowth to the next, >= 1.
    """

    epochs: int
    updates_per_epoch: int
    updates_per_batch: int = 1
    every: int = 1

    def due(self) -> list[int]:
        """Returns the epochs that begin with a regrowth, counted from 0."""
        return [epoch for epoch in range(1, self.epochs) if self._is_due(epoch)]

    def _is_due(self, epoch: int) -> bool:
        return epoch % self.every == 0 and epoch < UNTIL * self.epochs

    def now(self, updates: Int[Array, ""]) -> Array:
        """Returns whether masks regrow after so many updates, a traced boolean."""
        before = updates - self.updates_per_batch
        last = max(self.due(), default=0) * self.updates_per_epoch
        regular = before % (self.every * self.updates_per_epoch) == 0
        return regular & (before > 0) & (before <= last)


def regrowing(
    timing: Timing,
    share: Callable[[Int[Array, ""]], Any],
    growth: Callable[[Any, Int[Array, ""]], Any] = lambda gradient, updates: gradient,
) -> Masking:
    """Builds masks of single weights that regrow.

    Args:
        timing: When.
        share: (updates done) -> share of each layer's kept weights to drop, in [0, 1].
        growth: (gradient of the loss with respect to the masked weights, updates done) -> what
            weights grow by, a tree like `params`.

    Returns:
        The masking, for variables with scores of weights.
    """

    def regrow(variables: dict[str, Any], gradient: Any, updates: Int[Array, ""]) -> dict[str, Any]:
        def change(variables: dict[str, Any]) -> dict[str, Any]:
            dropped = jnp.asarray(share(updates), jnp.float32)
            return regrown(variables, growth(gradient, updates), dropped)

        return lax.cond(timing.now(updates), change, lambda variables: variables, variables)

    return PLAIN._replace(regrow=regrow)
