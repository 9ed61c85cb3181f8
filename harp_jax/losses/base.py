"""The base class of training losses."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

from harp_jax.attacks import PGD, Attack
from harp_jax.types import Images, Labels, Logits, Scalar

# Images in [0, 1] -> logits in training mode. Each call updates BatchNorm's running statistics, in
# the order of the calls.
Forward = Callable[[Images], Logits]


@dataclasses.dataclass(frozen=True)
class Loss:
    """How a stage trains: the images that its step attacks, and the loss of a batch.

    A loss is a subclass in a file of its own. Its fields are its settings, with defaults, checked
    in `__post_init__` (`settings.check`).

    Attributes:
        updates_per_batch: Updates of the optimiser with each batch, >= 1.
        chosen_by: The validation accuracy that chooses the network of a stage by its maximum.
        needs_radius: Whether the attack's epsilon has to be above 0.
    """

    chosen_by: ClassVar[Literal["robust", "natural"]] = "robust"
    needs_radius: ClassVar[bool] = False

    @property
    def updates_per_batch(self) -> int:
        """Number of updates of the optimiser with each batch, >= 1."""
        return 1

    def attack(self, configured: PGD) -> Attack | None:
        """Returns the attack of the training step.

        Args:
            configured: The PGD of `config.attack`, which validation uses.

        Returns:
            The attack; None for a loss of clean images alone.
        """
        return configured

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Computes the loss of a batch.

        Args:
            forward: Runs the network in training mode.
            clean: Clean images.
            adversarial: Images that the attack found, or the clean ones again.
            labels: True classes.

        Returns:
            The mean loss, and the logits that count for the training accuracy.
        """
        raise NotImplementedError
