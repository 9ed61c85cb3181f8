"""PGD (Madry et al., 2018), its single-step form FGSM, and PGD on the C&W loss."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from harp_jax.attacks import norms
from harp_jax.attacks.base import check_settings
from harp_jax.attacks.inputs import check_inputs
from harp_jax.attacks.objectives import OBJECTIVES, UNTARGETED, cross_entropy, is_wrong, margin
from harp_jax.settings import check, check_name
from harp_jax.types import ExampleKeys, Images, Labels, Logits, LogitsFn, PerExample, Scalar

Objective = Callable[[Logits, Labels], PerExample]


@dataclasses.dataclass(frozen=True)
class PGD:
    """PGD from random points of the ball.

    As in the authors' code, the random start is not clipped to [0, 1] before its first gradient.
    Every step projects onto the ball and onto [0, 1]. One restart returns the last iterate. Several
    restarts return the best of their last iterates per example: misclassified ones first, then the
    largest loss.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        step_size: Length of a step in the norm, on the [0, 1] scale.
        steps: Number of gradient steps, >= 1.
        restarts: Number of independent runs, >= 1.
        random_start: Whether to start at a uniform point of the ball instead of the image.
        norm: 'linf' or 'l2'.
        objective: Loss to maximise: 'ce', 'margin' or 'dlr', see `objectives`.
    """

    epsilon: float
    step_size: float
    steps: int = 10
    restarts: int = 1
    random_start: bool = True
    norm: str = "linf"
    objective: str = "ce"

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "steps", "restarts")
        check(self, "step_size", 0 < self.step_size < math.inf, "finite numbers > 0")
        check_name(self, "objective", UNTARGETED)

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`."""
        check_inputs(logits_fn, images, labels, key)
        return _search(self, OBJECTIVES[self.objective], logits_fn, images, labels, key)


@dataclasses.dataclass(frozen=True)
class CW:
    """PGD on the margin loss of Carlini & Wagner (2017), as the robust-pruning papers use it.

    It maximises the largest wrong logit minus the true one, up to `confidence`. An example that is
    misclassified by that margin moves no further.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        step_size: Length of a step in the norm, on the [0, 1] scale.
        steps: Number of gradient steps, >= 1.
        restarts: Number of independent runs, >= 1; the best is chosen as in `PGD`.
        confidence: Margin at which the loss ends, in logits, >= 0.
        random_start: Whether to start at a uniform point of the ball instead of the image.
        norm: 'linf' or 'l2'.
    """

    epsilon: float
    step_size: float
    steps: int = 20
    restarts: int = 1
    confidence: float = 50.0
    random_start: bool = True
    norm: str = "linf"

    objective = "margin"

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "steps", "restarts")
        check(self, "step_size", 0 < self.step_size < math.inf, "finite numbers > 0")
        check(self, "confidence", self.confidence >= 0, "numbers >= 0")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`."""
        check_inputs(logits_fn, images, labels, key)

        def capped(logits: Logits, labels: Labels) -> PerExample:
            return jnp.minimum(margin(logits, labels), self.confidence)

        return _search(self, capped, logits_fn, images, labels, key)


@dataclasses.dataclass(frozen=True)
class FGSM:
    """Fast gradient sign method (Goodfellow et al., 2015): one step of length `epsilon`.

    Attributes:
        epsilon: Radius of the ball and length of the step, on the [0, 1] scale.
        norm: 'linf', or 'l2' for a step along the gradient itself.
    """

    epsilon: float
    norm: str = "linf"

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self)

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`. The key is not used."""
        del key
        check_inputs(logits_fn, images, labels)
        gradient = _loss_gradient(cross_entropy, logits_fn, labels)(images)
        moved = norms.ascend(images, gradient, self.epsilon, self.norm)
        return norms.project(moved, images, self.epsilon, self.norm)


def _search(
    attack: PGD | CW,
    objective: Objective,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: ExampleKeys,
) -> Images:
    """Runs all restarts; returns the best point of each example."""
    keys = norms.per_example_keys(key, len(images))
    gradient = _loss_gradient(objective, logits_fn, labels)
    if attack.restarts == 1:
        return _run(attack, gradient, images, keys)

    def restart(number, best):
        found = _run(attack, gradient, images, norms.fold_keys(keys, number))
        logits = logits_fn(found)
        return _better(best, (found, is_wrong(logits, labels), objective(logits, labels)))

    nothing = (images, jnp.zeros(len(images), bool), jnp.full(len(images), -jnp.inf))
    return lax.fori_loop(0, attack.restarts, restart, nothing)[0]


def _run(
    attack: PGD | CW, gradient: Callable[[Images], Images], images: Images, keys: jax.Array
) -> Images:
    """Runs one restart; returns its last iterate."""

    def step(_, adversarial):
        moved = norms.ascend(adversarial, gradient(adversarial), attack.step_size, attack.norm)
        return norms.project(moved, images, attack.epsilon, attack.norm)

    start = images
    if attack.random_start:
        start = images + norms.uniform_noise(keys, images, attack.epsilon, attack.norm)
    return lax.fori_loop(0, attack.steps, step, start)


def _loss_gradient(
    objective: Objective, logits_fn: LogitsFn, labels: Labels
) -> Callable[[Images], Images]:
    def loss(images: Images) -> Scalar:
        return objective(logits_fn(images), labels).sum()

    return jax.grad(loss)


def _better(best: tuple[jax.Array, ...], found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Takes, per example, the misclassified point, or else the one with the larger loss."""
    (_, best_wrong, best_loss), (_, wrong, loss) = best, found
    take = (wrong & ~best_wrong) | ((wrong == best_wrong) & (loss > best_loss))
    return tuple(
        jnp.where(take.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        for old, new in zip(best, found, strict=True)
    )
