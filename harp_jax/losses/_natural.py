"""Natural training: the cross-entropy of clean images."""

import dataclasses
from typing import ClassVar

import optax

from harp_jax.attacks import PGD
from harp_jax.losses.base import Forward, Loss
from harp_jax.types import Images, Labels, Logits, Scalar


def natural(logits: Logits, labels: Labels) -> Scalar:
    """Computes the mean cross-entropy on clean images.

    Args:
        logits: Logits of the clean images, training mode.
        labels: True classes.

    Returns:
        A scalar >= 0.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@dataclasses.dataclass(frozen=True)
class Natural(Loss):
    """Natural training, on clean images; natural accuracy chooses its network."""

    chosen_by: ClassVar = "natural"

    def attack(self, configured: PGD) -> None:
        """Returns None: training does not attack."""
        del configured

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Makes one pass over the clean images; see `Loss.__call__`."""
        del adversarial
        logits = forward(clean)
        return natural(logits, labels), logits
