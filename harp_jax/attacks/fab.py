"""Fast adaptive boundary attack (Croce & Hein, 2020): a small change that is misclassified."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Key

from harp_jax.attacks import norms, objectives, projections
from harp_jax.attacks.base import State, Task, check_settings, finished, untouched
from harp_jax.attacks.inputs import check_inputs
from harp_jax.settings import check
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

# A step of a run: number, (current points, closest so far) -> (next points, closest so far).
Step = Callable[[Array, tuple[Images, "Found"]], tuple[Images, "Found"]]

# Points -> gradients and values of affine functions; their zeros are the planes to step to.
Aim = Callable[[Images], tuple[Images, PerExample]]

# Distances below this count as zero when two are weighed against each other.
_TINY = 1e-8
# Slopes below this count as zero when a distance is divided by one.
_SMALLEST_SLOPE = 1e-12


class Found(NamedTuple):
    """Closest adversarial images of a search, per example."""

    adversarial: Images  # the clean image if none was found
    broken: Selection  # whether `adversarial` is misclassified
    distance: PerExample  # distance from the clean image; inf if none was found


@dataclasses.dataclass(frozen=True)
class FAB:
    """FAB: searches for the nearest misclassified point.

    The decision boundary to a class is approximated by the plane of the linearised network. Each
    step projects the current point and the image onto this plane, mixes both (the weight of the
    image is at most `alpha_max`), and overshoots the plane a little. If the new point is
    misclassified, the search continues from a point nearer to the image. FAB-T runs once for each
    of the most likely wrong classes of the clean image. Untargeted FAB chooses the nearest plane at
    each step, which needs a gradient for every class.

    Defaults are those of AutoAttack's standard version. As there, and unlike in the paper, there is
    no final binary search between the image and the closest point.

    The radius `epsilon` does not affect the first run. It is the largest distance that `__call__`
    accepts, and it bounds the starting points of further runs.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale, >= 0.
        norm: Norm of the distances, 'linf' or 'l2'.
        steps: Number of steps of a run, >= 1; each takes a gradient and another forward pass.
        targets: Number of target classes of FAB-T, >= 1; all wrong classes if there are fewer.
        restarts: Number of runs, >= 1; per target class for FAB-T. The first starts at the image,
            the others at random points. Their distance is half of `epsilon` or half of the smallest
            distance so far, whichever is less.
        alpha_max: Largest weight of the projection from the image, in [0, 1].
        eta: Overshoot: factor of the step to the plane, >= 1; 1 ends on the plane.
        beta: Fraction of the distance from the image that is kept after a success, in (0, 1).
        targeted: FAB-T; False for untargeted FAB.
    """

    epsilon: float
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    targeted: bool = True

    objective = "margin"  # its steps follow differences of logits
    uses_gradients = True
    in_pieces = False

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "steps", "targets", "restarts")
        check(self, "alpha_max", 0 <= self.alpha_max <= 1, "numbers from 0 to 1")
        check(self, "eta", self.eta >= 1, "numbers >= 1")
        check(self, "beta", 0 < self.beta < 1, "numbers between 0 and 1")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`.

        Returns:
            The closest adversarial images, in [0, 1]. It is the clean image if that is
            misclassified, or if no adversarial image was found within `epsilon`.
        """
        closest = self.closest(logits_fn, images, labels, key)
        return self._within(images, closest).adversarial

    def closest(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Found:
        """Finds the closest adversarial images at any distance; arguments as in `__call__`.

        Returns:
            The images, in [0, 1], and their distances from the clean images in `norm`. The
            distance is 0 if the clean image is misclassified.
        """
        check_inputs(logits_fn, images, labels, key)
        keys = norms.per_example_keys(key, len(images))
        logits = logits_fn(images)
        run = functools.partial(self._run, logits_fn, images, labels, logits, keys)
        start = _nothing_but(images, objectives.is_wrong(logits, labels))
        return lax.fori_loop(0, self.rounds(logits.shape[-1]), run, start)

    def rounds(self, classes: int) -> int:
        """Returns the number of runs against a network with `classes` classes."""
        return self.restarts * (min(self.targets, classes - 1) if self.targeted else 1)

    def start(self, task: Task) -> State:
        """Returns the clean images as state."""
        return untouched(task)

    def advance(self, task: Task, state: State) -> State:
        """Makes a whole run; returns the closest adversarial images within `epsilon`."""
        logits_fn, images, labels, keys, number = task
        logits = logits_fn(images)
        best = _nothing_but(state.adversarial, state.done)
        found = self._run(logits_fn, images, labels, logits, keys, number, best)
        return finished(self._within(images, found).adversarial)

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
        """Makes a run; returns the closer of its points and `best`; `logits` are the images'."""
        noise = norms.surface_noise(norms.fold_keys(keys, number), images, 0.5, self.norm)
        # In `advance` there is no `best`; unbroken examples then start within epsilon too.
        radius = norms.expand(jnp.minimum(best.distance, self.epsilon))
        at_random = jnp.clip(images + radius * noise, 0.0, 1.0)
        start = jnp.where(number % self.restarts == 0, images, at_random)
        aim = _at_nearest(logits_fn, labels, self.norm)
        if self.targeted:
            goals = objectives.wrong_class(logits, labels, number // self.restarts)
            aim = _at(goals, logits_fn, labels)
        step = self._step(logits_fn, images, labels, aim)
        return lax.fori_loop(0, self.steps, step, (start, best))[1]

    def _step(self, logits_fn: LogitsFn, images: Images, labels: Labels, aim: Aim) -> Step:
        """Builds a step towards the planes of `aim`."""

        def step(_, state):
            points, best = state
            gradients, leads = aim(points)
            points = self._cross(images, points, gradients, leads)
            wrong = objectives.is_wrong(logits_fn(points), labels)
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
        """Steps past the planes, from the current points mixed with the images."""
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


def _at(goals: Labels, logits_fn: LogitsFn, labels: Labels) -> Aim:
    """Aims at the boundary to a given class, one per example."""

    def lead(points: Images) -> tuple[Scalar, PerExample]:
        """Returns the goals' logits minus the labels' logits: their sum, and per example."""
        both = jnp.stack([labels, goals], axis=1)
        leads = jnp.diff(jnp.take_along_axis(logits_fn(points), both, axis=1))[:, 0]
        return leads.sum(), leads

    return jax.grad(lead, has_aux=True)


def _at_nearest(logits_fn: LogitsFn, labels: Labels, norm: str) -> Aim:
    """Aims at the nearest boundary of the linearised network, over all classes."""
    dual = {"linf": _l1_length, "l2": _l2_length}[norm]

    def aim(points: Images) -> tuple[Images, PerExample]:
        logits, pull = jax.vjp(logits_fn, points)
        true = jax.nn.one_hot(labels, logits.shape[-1])

        def look(other, nearest):
            gradients, leads, least = nearest
            difference = jax.nn.one_hot(other, logits.shape[-1])[None] - true
            (normals,), values = pull(difference), (logits * difference).sum(-1)
            distance = jnp.abs(values) / (dual(normals) + _SMALLEST_SLOPE)
            nearer = (labels != other) & (distance < least)
            return (
                norms.select(nearer, normals, gradients),
                jnp.where(nearer, values, leads),
                jnp.where(nearer, distance, least),
            )

        nothing = (jnp.zeros_like(points), jnp.zeros(len(points)), jnp.full(len(points), jnp.inf))
        return lax.fori_loop(0, logits.shape[-1], look, nothing)[:2]

    return aim


def _l1_length(vectors: Images) -> PerExample:
    return jnp.abs(vectors).sum((1, 2, 3))


def _l2_length(vectors: Images) -> PerExample:
    return norms.length(vectors, "l2")


def _nothing_but(images: Images, wrong: Selection) -> Found:
    """Returns the state before the first run: misclassified images have the distance 0."""
    return Found(images, wrong, jnp.where(wrong, 0.0, jnp.inf))
