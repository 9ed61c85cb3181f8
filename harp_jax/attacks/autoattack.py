"""AutoAttack (Croce & Hein, 2020): four attacks in a row, none of them with anything to tune."""

import dataclasses

from harp_jax.attacks import norms
from harp_jax.attacks.apgd import APGD
from harp_jax.attacks.fab import FAB
from harp_jax.attacks.settings import check
from harp_jax.attacks.square import Square
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, Selection

VERSIONS = ("standard",)


@dataclasses.dataclass(frozen=True)
class AutoAttack:
    """AutoAttack: APGD-CE, APGD-T, FAB-T and Square, each on what the others left.

    An example counts as robust only if it withstands all four. The defaults are the published ones;
    fewer steps, targets or queries are for tests.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        norm: 'linf' or 'l2'.
        version: Only 'standard'.
        steps: Number of steps of APGD and FAB, >= 1.
        targets: Target classes of APGD-T and FAB-T, >= 1; at most all wrong ones are.
        queries: Queries of the Square Attack, >= 1.
    """

    epsilon: float
    norm: str = "linf"
    version: str = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self):
        """Checks the settings.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        check(self, "epsilon", self.epsilon >= 0, "numbers >= 0")
        check(self, "norm", self.norm in norms.NORMS, ", ".join(norms.NORMS))
        check(self, "version", self.version in VERSIONS, ", ".join(VERSIONS))
        for field in ("steps", "targets", "queries"):
            check(self, field, getattr(self, field) >= 1, "whole numbers >= 1")

    def attacks(self) -> dict[str, APGD | FAB | Square]:
        """The attacks in their order, by the names under which they are reported."""
        epsilon, norm, steps, targets = self.epsilon, self.norm, self.steps, self.targets
        return {
            "apgd-ce": APGD(epsilon, norm, "ce", steps),
            "apgd-t": APGD(epsilon, norm, "dlr_targeted", steps, targets=targets),
            "fab-t": FAB(epsilon, norm, steps, targets),
            "square": Square(epsilon, norm, self.queries),
        }

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch.

        Args:
            logits_fn: Images in [0, 1] -> logits; a network in inference mode.
            images: Clean images.
            labels: True classes.
            key: One key, or one per example (then an example's noise does not depend on the batch).

        Returns:
            For each example the first misclassified point that was found, in [0, 1] and within
            `epsilon` of the clean image: the image itself if it is one; the image, too, if none
            was found.
        """
        keys = norms.per_example_keys(key, len(images))
        points = images
        for place, attack in enumerate(self.attacks().values()):
            # What is broken goes in as it is, is taken for a misclassified image and comes out so.
            found = attack(logits_fn, points, labels, norms.fold_keys(keys, place))
            fooled = broken(logits_fn, found, labels)
            points = norms.select(fooled, found, images)
        return points


def broken(logits_fn: LogitsFn, images: Images, labels: Labels) -> Selection:
    """Which images are misclassified."""
    return logits_fn(images).argmax(-1) != labels
