"""The loss of free adversarial training (Shafahi et al., 2019)."""

import dataclasses
from typing import ClassVar

from harp_jax.losses._natural import natural
from harp_jax.losses.base import Forward, Loss
from harp_jax.settings import check
from harp_jax.types import Images, Labels, Logits, Scalar


@dataclasses.dataclass(frozen=True)
class Free(Loss):
    """Free-AT: each batch is replayed, and each backward pass also moves its perturbation.

    Its attack and its updates share their passes, so it has a step of its own,
    `training.free_step`. This class is the loss of a replay: the cross-entropy of perturbed images.

    Reference: Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019.

    Attributes:
        replays: Updates with each batch, 1 to 1000. They do not divide a stage's epochs.
    """

    replays: int = 4

    needs_radius: ClassVar = True

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "replays", 1 <= self.replays <= 1000, "whole numbers from 1 to 1000")

    @property
    def updates_per_batch(self) -> int:
        """The number of replays: one update each."""
        return self.replays

    def __call__(
        self, forward: Forward, clean: Images, adversarial: Images, labels: Labels
    ) -> tuple[Scalar, Logits]:
        """Makes one pass over the perturbed images; see `Loss.__call__`."""
        del clean
        logits = forward(adversarial)
        return natural(logits, labels), logits
