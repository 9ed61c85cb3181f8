"""TRADES (Zhang et al., 2019): accuracy on clean images against agreement under attack."""

import dataclasses

import jax
import jax.numpy as jnp

from harp_jax.attacks import PGD
from harp_jax.losses._natural import natural
from harp_jax.losses.base import Forward, Loss
from harp_jax.losses.nearby import NearbyAscent, beside
from harp_jax.settings import check
from harp_jax.types import Images, Labels, Logits, PerExample, Scalar


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


@dataclasses.dataclass(frozen=True)
class Trades(Loss):
    """Training with TRADES; its attack ascends the divergence, from right beside the image.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    2019.

    Attributes:
        beta: Weight of the divergence, > 0.
    """

    beta: float = 6.0

    def __post_init__(self):
        """Checks the settings; a ValueError names what is wrong."""
        check(self, "beta", self.beta > 0, "numbers > 0")

    def attack(self, configured: PGD) -> NearbyAscent:
        """Ascends the divergence in the configured ball."""
        return beside(configured, _divergence)

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Three passes: clean, adversarial, clean; see `Loss.__call__`."""
        clean_logits, logits = forward(clean), forward(adversarial)
        # The authors' code takes the divergence's target from a second clean pass. Training-mode
        # logits do not depend on the running statistics, so it gives the first one's logits again,
        # and the compiler merges the two. Only the third update of the statistics remains of it.
        forward(clean)
        return trades(clean_logits, logits, labels, self.beta), logits


def _divergence(clean_logits: Logits, logits: Logits, _: Labels) -> Scalar:
    return kl_divergence(clean_logits, logits).sum()
