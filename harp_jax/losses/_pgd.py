"""PGD-AT (Madry et al., 2018): the cross-entropy of adversarial images."""

import dataclasses

from harp_jax.losses._natural import natural
from harp_jax.losses.base import Forward, Loss
from harp_jax.types import Images, Labels, Logits, Scalar


def pgd(adversarial_logits: Logits, labels: Labels) -> Scalar:
    """Computes the loss of PGD-AT: the mean cross-entropy on adversarial images.

    Args:
        adversarial_logits: Logits of the adversarial images, training mode.
        labels: True classes.

    Returns:
        A scalar >= 0.
    """
    return natural(adversarial_logits, labels)


@dataclasses.dataclass(frozen=True)
class PgdTraining(Loss):
    """Adversarial training with PGD as configured.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Makes one pass over the adversarial images; see `Loss.__call__`."""
        del clean
        logits = forward(adversarial)
        return pgd(logits, labels), logits
