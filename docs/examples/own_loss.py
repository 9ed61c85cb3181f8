"""A training loss of one's own: adversarial logit pairing, ALP.

    --config.loss=own_loss:ALP

Its settings are the fields; a configuration's file sets them by `config.own.ALP = {"weight": 1.0}`.

Reference: Kannan et al., "Adversarial Logit Pairing", 2018.
"""

import dataclasses

from harp_jax.losses import Loss, pgd
from harp_jax.settings import check


@dataclasses.dataclass(frozen=True)
class ALP(Loss):
    """PGD-AT, plus the squared distance between clean and adversarial logits.

    Attributes:
        weight: Of the distance, > 0.
    """

    weight: float = 0.5

    def __post_init__(self):
        check(self, "weight", self.weight > 0, "numbers > 0")

    def __call__(self, forward, clean, adversarial, labels):
        clean_logits, logits = forward(clean), forward(adversarial)
        distance = ((clean_logits - logits) ** 2).mean()
        return pgd(logits, labels) + self.weight * distance, logits
