"""Training losses as functions of logits and labels."""

import jax
import jax.numpy as jnp
import optax

from harp_jax.types import Labels, Logits, PerExample, Scalar

# Floors of MART's logarithms and of its weight, as its authors have them: a wrong class of
# probability 1 costs -log(1e-4), and a clean example of probability 1 keeps a weight of 1e-7.
_WRONG_CLASS_FLOOR = 1.0001
_PROBABILITY_FLOOR = 1e-12
_WEIGHT_FLOOR = 1.0000001


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


def trades(
    clean_logits: Logits, adversarial_logits: Logits, labels: Labels, beta: float = 6.0
) -> Scalar:
    """TRADES (Zhang et al., 2019): CE(clean) + beta * KL(p(clean) || p(adversarial)), means.

    As in the authors' code the gradient flows through both arguments of the divergence.

    Args:
        clean_logits: Of the clean images, training mode.
        adversarial_logits: Of the adversarial images, training mode.
        labels: True classes.
        beta: Weight of robustness against accuracy, > 0.

    Returns:
        A scalar >= 0.
    """
    robust = kl_divergence(clean_logits, adversarial_logits).mean()
    return natural(clean_logits, labels) + beta * robust


def mart(
    clean_logits: Logits, adversarial_logits: Logits, labels: Labels, beta: float = 5.0
) -> Scalar:
    """MART (Wang et al., 2020): boosted CE, and a divergence that misclassified images count in.

    With p the probabilities of the clean and q those of the adversarial image, the mean of

        -log q_y - log(1.0001 - max of q over wrong classes)
            + beta * KL(p || q) * (1.0000001 - p_y).

    Nothing is held fixed: the gradient flows through p, q and the weight.

    Args:
        clean_logits: Of the clean images, training mode.
        adversarial_logits: Of the adversarial images, training mode.
        labels: True classes.
        beta: Weight of the divergence, > 0.

    Returns:
        A scalar; above -1e-4, since the boosted term can be that little below zero.
    """
    log_clean, q = jax.nn.log_softmax(clean_logits), jax.nn.softmax(adversarial_logits)
    is_true = jax.nn.one_hot(labels, q.shape[-1], dtype=bool)
    likeliest_wrong = jnp.where(is_true, -jnp.inf, adversarial_logits).argmax(-1)
    margin = _WRONG_CLASS_FLOOR - _of_class(q, likeliest_wrong) + _PROBABILITY_FLOOR
    boosted = natural(adversarial_logits, labels) - jnp.log(margin).mean()
    p = jnp.exp(log_clean)
    divergence = (p * (log_clean - jnp.log(q + _PROBABILITY_FLOOR))).sum(-1)
    weight = _WEIGHT_FLOOR - _of_class(p, labels)
    return boosted + beta * (divergence * weight).mean()


def kl_divergence(logits: Logits, other_logits: Logits) -> PerExample:
    """KL(softmax(logits) || softmax(other_logits)) of each example.

    It and its gradients in both arguments are finite for all finite logits, since no probability
    is divided by or put into a logarithm.

    Args:
        logits: Of the distribution that the mean is taken over.
        other_logits: Of the one that it is compared with.

    Returns:
        One number >= 0 per example, up to rounding.
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _of_class(values: Logits, classes: Labels) -> PerExample:
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]
