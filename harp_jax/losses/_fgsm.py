"""Fast adversarial training: one step from a random start."""

import dataclasses
from typing import ClassVar

from harp_jax.attacks import PGD
from harp_jax.losses._pgd import PgdTraining

# Step of fast adversarial training over epsilon (Wong et al., 2020).
FGSM_STEP = 1.25


@dataclasses.dataclass(frozen=True)
class FgsmTraining(PgdTraining):
    """Adversarial training with one step of 1.25 epsilon from a random start.

    Reference: Wong et al., "Fast is better than free", 2020.
    """

    needs_radius: ClassVar = True

    def attack(self, configured: PGD) -> PGD:
        """Returns the configured PGD with that one step."""
        return dataclasses.replace(configured, steps=1, step_size=FGSM_STEP * configured.epsilon)
