"""Training losses as functions of logits and labels."""

import optax

from harp_jax.types import Labels, Logits, Scalar


def natural(logits: Logits, labels: Labels) -> Scalar:
    """Mean cross-entropy on clean images.

    Args:
        logits: Of the clean images, training mode.
        labels: True classes.

    Returns:
        A scalar >= 0.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pgd(adversarial_logits: Logits, labels: Labels) -> Scalar:
    """PGD-AT (Madry et al., 2018): mean cross-entropy on adversarial images.

    Args:
        adversarial_logits: Of the adversarial images, training mode.
        labels: True classes.

    Returns:
        A scalar >= 0.
    """
    return natural(adversarial_logits, labels)
