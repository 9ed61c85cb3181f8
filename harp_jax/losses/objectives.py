"""The training losses by name: their forward passes and the attack that finds their images.

| name    | attack of the training step                         | training-mode passes, in order |
|---------|-----------------------------------------------------|--------------------------------|
| natural | none                                                | clean                          |
| pgd     | PGD as configured                                   | adversarial                    |
| fgsm    | one step of 1.25 epsilon from a random start        | adversarial                    |
| trades  | ascends the divergence, from right beside the image | clean, adversarial, clean      |
| mart    | ascends the cross-entropy, from the same start      | clean, adversarial             |

Each pass updates BatchNorm's running statistics. The loss `free` is not of this form, as its
attack and its updates share their passes: it has a step of its own (`free_step`).
"""

import dataclasses
from collections.abc import Callable

from harp_jax import losses
from harp_jax.attacks import PGD, Attack
from harp_jax.losses.nearby import Ascended, NearbyAscent
from harp_jax.types import Images, Labels, Logits, Scalar

# Step of fast adversarial training over epsilon (Wong et al., 2020).
FGSM_STEP = 1.25

Forward = Callable[[Images], Logits]


@dataclasses.dataclass(frozen=True)
class Objective:
    """How a training loss is computed, and from which images.

    Attributes:
        passes: (forward, clean images, adversarial images, labels[, beta]) -> (loss, logits that
            count for the training accuracy).
        inner: From the configured PGD, which validation uses, to the attack of the training step;
            None for a loss of clean images alone.
        beta: Weight of the robust term, > 0; None where the loss has none.
    """

    passes: Callable[..., tuple[Scalar, Logits]]
    inner: Callable[[PGD], Attack] | None
    beta: float | None = None

    def loss(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """The loss of a batch.

        Args:
            forward: Runs the network in training mode; each call updates BatchNorm's running
                statistics, in the order of the calls.
            clean: Clean images.
            adversarial: Those that the attack found, or the clean ones again.
            labels: True classes.

        Returns:
            The loss, and the logits that count for the training accuracy.
        """
        weight = () if self.beta is None else (self.beta,)
        return self.passes(forward, clean, adversarial, labels, *weight)


def _natural(forward: Forward, clean: Images, _: Images, labels: Labels) -> tuple[Scalar, Logits]:
    logits = forward(clean)
    return losses.natural(logits, labels), logits


def _pgd(forward: Forward, _: Images, adversarial: Images, labels: Labels) -> tuple[Scalar, Logits]:
    logits = forward(adversarial)
    return losses.pgd(logits, labels), logits


def _trades(
    forward: Forward, clean: Images, adversarial: Images, labels: Labels, beta: float
) -> tuple[Scalar, Logits]:
    clean_logits, logits = forward(clean), forward(adversarial)
    # The authors' code takes the divergence's target from a second clean pass. Training-mode logits
    # do not depend on the running statistics, so it gives the first one's logits again, and the
    # compiler merges the two; what is left of it is the third update of the statistics.
    forward(clean)
    return losses.trades(clean_logits, logits, labels, beta), logits


def _mart(
    forward: Forward, clean: Images, adversarial: Images, labels: Labels, beta: float
) -> tuple[Scalar, Logits]:
    clean_logits, logits = forward(clean), forward(adversarial)
    return losses.mart(clean_logits, logits, labels, beta), logits


def _divergence(clean_logits: Logits, logits: Logits, _: Labels) -> Scalar:
    return losses.kl_divergence(clean_logits, logits).sum()


def _cross_entropy(_: Logits, logits: Logits, labels: Labels) -> Scalar:
    return losses.natural(logits, labels)


def _single_step(attack: PGD) -> PGD:
    return dataclasses.replace(attack, steps=1, step_size=FGSM_STEP * attack.epsilon)


def _ascending_divergence(attack: PGD) -> NearbyAscent:
    return _beside(attack, _divergence)


def _ascending_cross_entropy(attack: PGD) -> NearbyAscent:
    return _beside(attack, _cross_entropy)


def _beside(attack: PGD, ascended: Ascended) -> NearbyAscent:
    return NearbyAscent(attack.epsilon, attack.step_size, attack.steps, ascended, attack.norm)


OBJECTIVES: dict[str, Objective] = {
    "natural": Objective(_natural, inner=None),
    "pgd": Objective(_pgd, inner=lambda attack: attack),
    "fgsm": Objective(_pgd, inner=_single_step),
    "trades": Objective(_trades, inner=_ascending_divergence, beta=6.0),
    "mart": Objective(_mart, inner=_ascending_cross_entropy, beta=5.0),
}
FREE = "free"
LOSSES = (*OBJECTIVES, FREE)
