"""Fast adaptive boundary attack (Croce & Hein, 2020), targeted: the smallest change that fools."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Key

from harp_jax.attacks import norms, objectives, projections
from harp_jax.attacks.settings import check
from harp_jax.types import (
    ExampleKeys,
    Images,
    Labels,
    Logits,
    LogitsFn,
    PerExample,
    Scalar,
    Selection,
)

# A step of a run: its number, (current points, what was found) -> the next points, what was found.
Step = Callable[[Array, tuple[Images, "Found"]], tuple[Images, "Found"]]

# Distances that count as nothing, in the weighing of two of them.
_TINY = 1e-8


class Found(NamedTuple):
    """What a search has found, per example."""

    adversarial: Images  # the clean image where nothing was found
    broken: Selection  # whether `adversarial` is misclassified
    distance: PerExample  # of the two; infinite where nothing was found


@dataclasses.dataclass(frozen=True)
class FAB:
    """FAB-T: searches the nearest point that is classified wrongly, towards one class at a time.

    For each of the most likely wrong classes the network's boundary towards it is taken as the
    plane that it would be if the network were linear. Each step goes past this plane from the
    current point and, with a weight of at most `alpha_max`, from the image itself; where that
    fools the network, whichever class it names, it goes on from a point nearer to the image.
    Defaults are those of AutoAttack's standard version. As there, and unlike in the paper, no
    binary search between the image and the point found follows.

    The radius `epsilon` does not steer the first run: it is what `__call__` accepts, and bounds
    where further runs start.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale, >= 0.
        norm: 'linf' or 'l2', in which distances are small.
        steps: Number of steps of a run, >= 1; each takes a gradient and a further forward pass.
        targets: Number of classes to go for, >= 1; at most all wrong ones are.
        restarts: Runs per class, >= 1. The first starts at the image, the others at random points
            half as far from it as `epsilon` or the closest point found, if that is less.
        alpha_max: Largest weight of the projection from the image, in [0, 1].
        eta: How far to go towards the plane's other side, >= 1; 1 ends on the plane.
        beta: The share of the way from the image to keep after a success, in (0, 1).
    """

    epsilon: float
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self):
        """Checks the settings.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        check(self, "epsilon", self.epsilon >= 0, "numbers >= 0")
        check(self, "norm", self.norm in norms.NORMS, ", ".join(norms.NORMS))
        check(self, "steps", self.steps >= 1, "whole numbers >= 1")
        check(self, "targets", self.targets >= 1, "whole numbers >= 1")
        check(self, "restarts", self.restarts >= 1, "whole numbers >= 1")
        check(self, "alpha_max", 0 <= self.alpha_max <= 1, "numbers from 0 to 1")
        check(self, "eta", self.eta >= 1, "numbers >= 1")
        check(self, "beta", 0 < self.beta < 1, "numbers between 0 and 1")

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
            The closest adversarial images found, in [0, 1]; the clean image where it is
            misclassified itself or nothing was found within `epsilon`.
        """
        closest = self.closest(logits_fn, images, labels, key)
        return self._within(images, closest).adversarial

    def closest(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Found:
        """The closest adversarial images, whatever their distance; arguments as for `__call__`.

        Returns:
            The images, in [0, 1], and their distances from the clean ones in `norm`: 0 where the
            clean image is misclassified.
        """
        keys = norms.per_example_keys(key, len(images))
        logits = logits_fn(images)
        run = functools.partial(self._run, logits_fn, images, labels, logits, keys)
        start = _untouched(images, labels, logits)
        return lax.fori_loop(0, self.runs(logits.shape[-1]), run, start)

    def runs(self, classes: int) -> int:
        """Number of runs of an attack on a network with so many classes."""
        return self.restarts * min(self.targets, classes - 1)

    def run(
        self,
        logits_fn: LogitsFn,
        images: Images,
        labels: Labels,
        keys: Key[Array, " batch"],
        number: Int[Array, ""] | int,
    ) -> Found:
        """One of the `runs` alone, so that examples can be packed anew between them.

        The runs in their order, each on the examples that those before did not break, break exactly
        what a call breaks.

        Args:
            logits_fn: As of a call.
            images: Clean images.
            labels: True classes.
            keys: One per example, the same for every run.
            number: In [0, runs); it may be traced, one program then serves all runs.

        Returns:
            The closest adversarial images within `epsilon`.
        """
        logits = logits_fn(images)
        start = _untouched(images, labels, logits)
        found = self._run(logits_fn, images, labels, logits, keys, number, start)
        return self._within(images, found)

    def _within(self, images: Images, found: Found) -> Found:
        broken = found.distance <= self.epsilon
        return Found(
            adversarial=norms.select(broken, found.adversarial, images),
            broken=broken,
            distance=jnp.where(broken, found.distance, jnp.inf),
        )

    def _run(
        self,
        logits_fn: LogitsFn,
        images: Images,
        labels: Labels,
        logits: Logits,
        keys: Key[Array, " batch"],
        number: Int[Array, ""] | int,
        best: Found,
    ) -> Found:
        """The closer of `best` and what a run finds; `logits` are the clean images'."""
        goals = objectives.wrong_class(logits, labels, number // self.restarts)
        noise = norms.surface_noise(norms.fold_keys(keys, number), images, 0.5, self.norm)
        # An example that is not broken yet has radius epsilon in `run`, which knows no `best`, too.
        radius = norms.expand(jnp.minimum(best.distance, self.epsilon))
        at_random = jnp.clip(images + radius * noise, 0.0, 1.0)
        start = jnp.where(number % self.restarts == 0, images, at_random)
        step = self._step(logits_fn, images, labels, goals)
        return lax.fori_loop(0, self.steps, step, (start, best))[1]

    def _step(self, logits_fn: LogitsFn, images: Images, labels: Labels, goals: Labels) -> Step:
        """A step of a run towards the classes `goals`."""

        def lead(points: Images) -> tuple[Scalar, PerExample]:
            """How far the goals' logits are ahead of the labels': summed, and for each example."""
            both = jnp.stack([labels, goals], axis=1)
            leads = jnp.diff(jnp.take_along_axis(logits_fn(points), both, axis=1))[:, 0]
            return leads.sum(), leads

        def step(_, state):
            points, best = state
            gradients, leads = jax.grad(lead, has_aux=True)(points)
            points = self._cross(images, points, gradients, leads)
            wrong = logits_fn(points).argmax(-1) != labels
            distance = norms.length(points - images, self.norm)
            closer = wrong & (distance < best.distance)
            best = Found(
                adversarial=norms.select(closer, points, best.adversarial),
                broken=best.broken | closer,
                distance=jnp.where(closer, distance, best.distance),
            )
            back = images + self.beta * (points - images)
            return norms.select(wrong, back, points), best

        return step

    def _cross(
        self, images: Images, points: Images, gradients: Images, leads: PerExample
    ) -> Images:
        """Points past the planes: from the current ones, drawn a little towards the images."""
        flat_images, flat_points, normals = (
            x.reshape(len(images), -1) for x in (images, points, gradients)
        )
        to_plane = projections.to_plane_linf if self.norm == "linf" else projections.to_plane_l2
        leads_at_images = leads + (normals * (flat_images - flat_points)).sum(-1)
        near = to_plane(flat_points, normals, leads).reshape(images.shape)
        far = to_plane(flat_images, normals, leads_at_images).reshape(images.shape)
        near_length, far_length = (
            jnp.maximum(norms.length(x, self.norm), _TINY) for x in (near, far)
        )
        share = jnp.minimum(near_length / (near_length + far_length), self.alpha_max)
        alpha = norms.expand(share)
        mixed = (1 - alpha) * (points + self.eta * near) + alpha * (images + self.eta * far)
        return jnp.clip(mixed, 0.0, 1.0)


def _untouched(images: Images, labels: Labels, logits: Logits) -> Found:
    """What is known before the first run: nothing is closer than a misclassified image itself."""
    wrong = logits.argmax(-1) != labels
    return Found(images, wrong, jnp.where(wrong, 0.0, jnp.inf))
