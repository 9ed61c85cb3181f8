"""MART (Wang et al., 2020): images that are misclassified when clean count more."""

import dataclasses

import jax
import jax.numpy as jnp

from harp_jax.attacks import PGD
from harp_jax.losses._natural import natural
from harp_jax.losses.base import Forward, Loss
from harp_jax.losses.nearby import NearbyAscent, beside
from harp_jax.settings import check
from harp_jax.types import Images, Labels, Logits, PerExample, Scalar

# Floors of MART's logarithms and of its weight, as its authors have them: a wrong class of
# probability 1 costs -log(1e-4), and a clean example of probability 1 keeps a weight of 1e-7.
_WRONG_CLASS_FLOOR = 1.0001
_PROBABILITY_FLOOR = 1e-12
_WEIGHT_FLOOR = 1.0000001


def mart(
    clean_logits: Logits, adversarial_logits: Logits, labels: Labels, beta: float = 5.0
) -> Scalar:
    """Computes the loss of MART (Wang et al., 2020): boosted CE plus a weighted divergence.

    With p the probabilities of the clean and q those of the adversarial image, the mean of

        -log q_y - log(1.0001 - max of q over wrong classes)
            + beta * KL(p || q) * (1.0000001 - p_y).

    The gradient flows through p, q and the weight 1.0000001 - p_y, which is large for misclassified
    images.

    Args:
        clean_logits: Logits of the clean images, training mode.
        adversarial_logits: Logits of the adversarial images, training mode.
        labels: True classes.
        beta: Weight of the divergence, > 0.

    Returns:
        A scalar > -1e-4: the boosted term can be slightly negative.
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


def _of_class(values: Logits, classes: Labels) -> PerExample:
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Mart(Loss):
    """Training with MART; its attack ascends the cross-entropy from a point close to the image.

    Reference: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples", 2020.

    Attributes:
        beta: Weight of the divergence, > 0.
    """

    beta: float = 5.0

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "beta", self.beta > 0, "numbers > 0")

    def attack(self, configured: PGD) -> NearbyAscent:
        """Returns the ascent on the cross-entropy in the configured ball."""
        return beside(configured, _cross_entropy)

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Makes two passes: clean, adversarial; see `Loss.__call__`."""
        clean_logits, logits = forward(clean), forward(adversarial)
        return mart(clean_logits, logits, labels, self.beta), logits


def _cross_entropy(_: Logits, logits: Logits, labels: Labels) -> Scalar:
    return natural(logits, labels)
