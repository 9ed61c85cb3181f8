"""Projected gradient descent (Madry et al., 2018) and its single-step form FGSM."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from harp_jax.attacks import norms
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, PerExample, Scalar, Selection


@runtime_checkable
class Attack(Protocol):
    """What every attack is: a pure function with its settings as frozen fields."""

    @property
    def epsilon(self) -> float:
        """Radius of the ball, on the [0, 1] scale."""
        ...

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Adversarial images in [0, 1] within the attack's ball around `images`."""
        ...


@dataclasses.dataclass(frozen=True)
class PGD:
    """L_inf PGD on the cross-entropy, from random points of the ball.

    As in the authors' code, the random start is not clipped to [0, 1] before its first gradient;
    every step then projects onto the ball and the box. With one restart the last iterate is
    returned; with more, per example, the one that is misclassified with the largest loss.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        step_size: Length of a step, on the [0, 1] scale.
        steps: Number of gradient steps, >= 1.
        restarts: Number of independent runs, >= 1.
        random_start: Start at a uniform point of the ball instead of at the image.
        norm: Only 'linf'.
    """

    epsilon: float
    step_size: float
    steps: int = 10
    restarts: int = 1
    random_start: bool = True
    norm: str = "linf"

    def __post_init__(self):
        """Checks the settings.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        _check(self, "epsilon", self.epsilon >= 0, "numbers >= 0")
        _check(self, "step_size", self.step_size > 0, "numbers > 0")
        _check(self, "steps", self.steps >= 1, "whole numbers >= 1")
        _check(self, "restarts", self.restarts >= 1, "whole numbers >= 1")
        _check(self, "norm", self.norm in norms.NORMS, ", ".join(norms.NORMS))

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
            Adversarial images in [0, 1], within `epsilon` of the clean ones.
        """
        keys = norms.per_example_keys(key, len(images))
        if self.restarts == 1:
            return self._run(logits_fn, images, labels, keys)

        def restart(number, best):
            run_keys = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
            found = self._run(logits_fn, images, labels, run_keys)
            return _better(best, (found, *_success(logits_fn, found, labels)))

        nothing = (images, jnp.zeros(len(images), bool), jnp.full(len(images), -jnp.inf))
        return lax.fori_loop(0, self.restarts, restart, nothing)[0]

    def _run(self, logits_fn: LogitsFn, images: Images, labels: Labels, keys: jax.Array) -> Images:
        gradient = _loss_gradient(logits_fn, labels)

        def step(_, adversarial):
            moved = norms.ascend(adversarial, gradient(adversarial), self.step_size)
            return norms.project(moved, images, self.epsilon)

        start = images
        if self.random_start:
            start = images + norms.uniform_noise(keys, images, self.epsilon)
        return lax.fori_loop(0, self.steps, step, start)


@dataclasses.dataclass(frozen=True)
class FGSM:
    """Fast gradient sign method (Goodfellow et al., 2015): one step of length `epsilon`, L_inf.

    Attributes:
        epsilon: Radius of the ball and length of the step, on the [0, 1] scale.
        norm: Only 'linf'.
    """

    epsilon: float
    norm: str = "linf"

    def __post_init__(self):
        """Checks the settings, as `PGD` does."""
        _check(self, "epsilon", self.epsilon >= 0, "numbers >= 0")
        _check(self, "norm", self.norm in norms.NORMS, ", ".join(norms.NORMS))

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `PGD.__call__`. The key is not used."""
        del key
        gradient = _loss_gradient(logits_fn, labels)(images)
        return norms.project(norms.ascend(images, gradient, self.epsilon), images, self.epsilon)


def _loss_gradient(logits_fn: LogitsFn, labels: Labels) -> Callable[[Images], Images]:
    def loss(images: Images) -> Scalar:
        logits = logits_fn(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    return jax.grad(loss)


def _success(logits_fn: LogitsFn, images: Images, labels: Labels) -> tuple[Selection, PerExample]:
    """Which images are misclassified, and their cross-entropy."""
    logits = logits_fn(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return logits.argmax(-1) != labels, loss


def _better(best: tuple[jax.Array, ...], found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Per example, the run that fools the network, then the one with the larger loss."""
    (_, best_wrong, best_loss), (_, wrong, loss) = best, found
    take = (wrong & ~best_wrong) | ((wrong == best_wrong) & (loss > best_loss))
    return tuple(
        jnp.where(take.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        for old, new in zip(best, found, strict=True)
    )


def _check(attack: PGD | FGSM, field: str, allowed: bool, what: str) -> None:
    if not allowed:
        raise ValueError(f"{field}={getattr(attack, field)!r}: allowed are {what}")
