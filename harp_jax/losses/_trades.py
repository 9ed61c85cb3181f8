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
    """Computes the loss of TRADES: mean CE(clean) + beta * KL(p(clean) || p(adversarial)).

    As in the authors' code the gradient flows through both arguments of the divergence.

    Args:
        clean_logits: Logits of the clean images, training mode.
        adversarial_logits: Logits of the adversarial images, training mode.
        labels: True classes.
        beta: Weight of robustness against accuracy, > 0.

    Returns:
        A scalar >= 0.
    """
    robust = kl_divergence(clean_logits, adversarial_logits).mean()
    return natural(clean_logits, labels) + beta * robust


def kl_divergence(logits: Logits, other_logits: Logits) -> PerExample:
    """Computes KL(softmax(logits) || softmax(other_logits)) of each example.

    The divergence and its gradients in both arguments are finite for all finite logits: it neither
    divides by a probability nor takes its logarithm.

    Args:
        logits: Logits of the first distribution, which weights the mean.
        other_logits: Logits of the second distribution.

    Returns:
        One number >= 0 per example, up to rounding.
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


@dataclasses.dataclass(frozen=True)
class Trades(Loss):
    """Training with TRADES; its attack ascends the divergence from a point close to the image.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    2019.

    Attributes:
        beta: Weight of the divergence, > 0.
    """

    beta: float = 6.0

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "beta", self.beta > 0, "numbers > 0")

    def attack(self, configured: PGD) -> NearbyAscent:
        """Returns the ascent on the divergence in the configured ball."""
        return beside(configured, _divergence)

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Makes three passes: clean, adversarial, clean; see `Loss.__call__`."""
        clean_logits, logits = forward(clean), forward(adversarial)
        # The authors' code takes the divergence's target from a second clean pass. Training-mode
        # logits do not depend on the running statistics, so it gives the first one's logits again,
        # and the compiler merges the two. Only the third update of the statistics remains of it.
        forward(clean)
        return trades(clean_logits, logits, labels, self.beta), logits


def _divergence(clean_logits: Logits, logits: Logits, _: Labels) -> Scalar:
    return kl_divergence(clean_logits, logits).sum()
