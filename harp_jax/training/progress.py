"""The state of a stage's loop between epochs: the best network so far, and what was measured."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from harp_jax.methods import Accuracies
from harp_jax.training.stages import Stage


@dataclasses.dataclass
class Progress:
    """State of the loop between epochs; saved with every checkpoint.

    Attributes:
        best_epoch: Epoch of the best network, or None.
        best_accuracy: Validation accuracy of that network, natural or robust as the loss says.
        reached: Whether an epoch ended at or below the compression target; True without a target.
        accuracies: Of each epoch those of training and validation, as `best_accuracy`; kept for
            stages that look at them after each epoch.
    """

    best_epoch: int | None = None
    best_accuracy: float = -1.0
    reached: bool = False
    accuracies: list[Accuracies] = dataclasses.field(default_factory=list)

    def judge(self, stage: Stage, epoch: int, accuracy: float, reached: bool) -> bool:
        """Takes note of an epoch's network; returns whether it is the best so far.

        Args:
            stage: The stage.
            epoch: Number of the epoch, from 0.
            accuracy: Validation accuracy, in [0, 1].
            reached: Whether the network is at or below the compression target.
        """
        self.reached |= reached
        eligible = self.reached and epoch >= stage.chosen_from
        if not eligible or accuracy <= self.best_accuracy:
            return False
        self.best_accuracy, self.best_epoch = accuracy, epoch
        return True

    def go_on(
        self, stage: Stage, variables: dict[str, Any], accuracies: Accuracies
    ) -> dict[str, Any] | None:
        """Computes the variables with which the next epoch begins; None if none of them changes.

        Args:
            stage: The stage.
            variables: Those at the end of the epoch, on the host.
            accuracies: Of the epoch, of training and validation.

        Returns:
            The variables, on the host.
        """
        if stage.after_epoch is None:
            return None
        self.accuracies.append(accuracies)
        arrays = jax.tree.map(jnp.asarray, variables)
        changed = stage.after_epoch(arrays, self.accuracies)
        return None if changed is arrays else jax.device_get(changed)
