"""AutoAttack (Croce & Hein, 2020): a sequence of attacks without parameters to tune."""

import dataclasses
from collections.abc import Callable

from harp_jax.attacks import norms
from harp_jax.attacks.apgd import APGD
from harp_jax.attacks.base import Part, check_settings, misclassified
from harp_jax.attacks.fab import FAB
from harp_jax.attacks.inputs import check_inputs
from harp_jax.attacks.square import Square
from harp_jax.names import hint
from harp_jax.settings import check
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn

SEPARATOR = "+"  # between the parts of a custom version


@dataclasses.dataclass(frozen=True)
class AutoAttack:
    """AutoAttack: several attacks, each on the examples that are still classified correctly.

    An example counts as robust only if it withstands all of them. The defaults are the published
    ones; use fewer steps, targets or queries only in tests. The versions are

    - 'standard': apgd-ce, apgd-t, fab-t, square;
    - 'plus': apgd-ce, apgd-dlr, fab (five runs each), square, apgd-t, fab-t;
    - 'rand': apgd-ce, apgd-dlr;
    - names of parts joined by '+', e.g. 'apgd-t+square'; each part makes one run.

    The published 'rand' is for randomised networks and averages 20 gradients at each point. Here
    networks are deterministic functions, whose 20 gradients would be equal, so one is computed. To
    evaluate a randomised network, pass a function that averages its outputs over fixed keys.

    With few classes, APGD-T and FAB-T target all wrong classes if there are fewer than `targets`.
    The DLR loss is not defined for two classes, the targeted DLR loss not for two or three; the
    difference of two logits then replaces it (see `objectives`).

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        norm: 'linf' or 'l2'.
        version: One of `VERSIONS`, or names of `PARTS` joined by '+'.
        steps: Number of steps of APGD and FAB, >= 1.
        targets: Number of target classes of APGD-T and FAB-T, >= 1; all wrong classes if there are
            fewer.
        queries: Number of queries of the Square Attack, >= 1.
    """

    epsilon: float
    norm: str = "linf"
    version: str = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "steps", "targets", "queries")
        names = self.version.split(SEPARATOR)
        known = set(names) <= PARTS.keys() and len(set(names)) == len(names)
        allowed = (
            f"{', '.join(VERSIONS)}, or different ones of {', '.join(PARTS)} with"
            f" {SEPARATOR!r} between them"
        )
        near = hint(self.version, VERSIONS)
        check(self, "version", self.version in VERSIONS or known, allowed, near)

    def parts(self) -> dict[str, Part]:
        """Returns the attacks in order, by the names used in reports."""
        names = VERSIONS.get(self.version) or self.version.split(SEPARATOR)
        restarts = 5 if self.version == "plus" else 1
        return {name: PARTS[name](self, restarts) for name in names}

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`.

        Returns:
            The first misclassified point of each example, in [0, 1] and within `epsilon` of the
            clean image. It is the clean image if that is misclassified, or if no part broke it.
        """
        check_inputs(logits_fn, images, labels, key)
        keys = norms.per_example_keys(key, len(images))
        points = images
        for place, part in enumerate(self.parts().values()):
            # Broken examples are passed as adversarial images, which parts return unchanged.
            found = part(logits_fn, points, labels, norms.fold_keys(keys, place))
            fooled = misclassified(logits_fn, found, labels)
            points = norms.select(fooled, found, images)
        return points


VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def _apgd(objective: str) -> Callable[[AutoAttack, int], Part]:
    return lambda of, restarts: APGD(of.epsilon, of.norm, objective, of.steps, restarts)


# (settings, restarts of the untargeted attacks) -> part.
PARTS: dict[str, Callable[[AutoAttack, int], Part]] = {
    "apgd-ce": _apgd("ce"),
    "apgd-dlr": _apgd("dlr"),
    "apgd-t": lambda of, _: APGD(of.epsilon, of.norm, "dlr_targeted", of.steps, targets=of.targets),
    "fab": lambda of, restarts: FAB(
        of.epsilon, of.norm, of.steps, restarts=restarts, targeted=False
    ),
    "fab-t": lambda of, _: FAB(of.epsilon, of.norm, of.steps, of.targets),
    "square": lambda of, _: Square(of.epsilon, of.norm, of.queries),
}
