"""Fast minimum-norm attack (Pintor et al., 2021, algorithm 1): the distance to the boundary."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from harp_jax.attacks import norms
from harp_jax.attacks.inputs import check_inputs
from harp_jax.attacks.objectives import is_wrong, margin
from harp_jax.settings import check
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, PerExample, Scalar, Selection


@dataclasses.dataclass(frozen=True)
class FMN:
    """FMN: searches for the nearest misclassified point, without a fixed ball.

    Each step ascends the margin and projects onto a ball whose radius follows the boundary. The
    radius shrinks by the fraction gamma while the example is misclassified (never above the best
    distance) and grows by gamma while it is not. Before the first success the radius is the
    first-order estimate of the distance. Gamma and step length decay along a cosine. The search
    starts at the image, so nothing is random.

    Unlike in the published algorithm, the estimate is enlarged by gamma: for a linear network the
    estimated point lies on the boundary, where rounding can keep an example from crossing it.

    Attributes:
        norm: Norm of the distance, 'linf' or 'l2'. Steps follow the L2 gradient in either case.
        steps: Number of evaluations, >= 1; the first one is that of the image.
        gamma_init: Relative change of the radius in the first step, in (0, 1).
        gamma_final: Relative change of the radius in the last step, in (0, 1).
        alpha_init: L2 length of the first step, on the [0, 1] scale, > 0.
        alpha_final: L2 length of the last step, on the [0, 1] scale, > 0.
    """

    norm: str = "linf"
    steps: int = 100
    gamma_init: float = 0.05
    gamma_final: float = 0.001
    alpha_init: float = 1.0
    alpha_final: float = 0.01

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check(self, "norm", self.norm in norms.NORMS, ", ".join(norms.NORMS))
        check(self, "steps", self.steps >= 1, "whole numbers >= 1")
        for field in ("gamma_init", "gamma_final"):
            check(self, field, 0 < getattr(self, field) < 1, "numbers in (0, 1)")
        for field in ("alpha_init", "alpha_final"):
            check(self, field, getattr(self, field) > 0, "numbers > 0")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> tuple[Images, PerExample]:
        """Attacks a batch; arguments as in `Attack`, the key is not used.

        Returns:
            Misclassified images in [0, 1] and their distances from the clean images: 0 if the clean
            image is misclassified; the clean image and inf if no misclassified image was found.
        """
        del key
        check_inputs(logits_fn, images, labels)
        farthest = norms.length(jnp.maximum(images, 1.0 - images), self.norm)

        def loss(x: Images) -> tuple[Scalar, tuple[PerExample, Selection]]:
            logits = logits_fn(x)
            margins = margin(logits, labels)
            return margins.sum(), (margins, is_wrong(logits, labels))

        def step(number, state: _State) -> _State:
            (_, (margins, wrong)), gradient = jax.value_and_grad(loss, has_aux=True)(state.x)
            size = norms.length(state.x - images, self.norm)
            state = _recorded(state, wrong, size)
            gamma = self._cosine(number, self.gamma_init, self.gamma_final)
            epsilon = jnp.where(
                wrong,
                jnp.minimum(state.epsilon * (1 - gamma), state.distance),
                jnp.where(
                    jnp.isfinite(state.distance),
                    state.epsilon * (1 + gamma),
                    (size + _to_boundary(margins, gradient, self.norm)) * (1 + gamma),
                ),
            )
            epsilon = jnp.minimum(epsilon, farthest)
            alpha = self._cosine(number, self.alpha_init, self.alpha_final)
            moved = norms.ascend(state.x, gradient, alpha, "l2")
            x = norms.project(moved, images, norms.expand(epsilon), self.norm)
            return state._replace(x=x, epsilon=epsilon)

        nothing = jnp.full(len(images), jnp.inf)
        end = lax.fori_loop(0, self.steps, step, _State(images, nothing, images, nothing))
        return end.adversarial, end.distance

    def _cosine(self, number: Array, first: float, last: float) -> Scalar:
        return last + (first - last) * (1 + jnp.cos(jnp.pi * number / self.steps)) / 2


def security_curve(
    distances: PerExample, epsilons: Float[Array, " radii"]
) -> Float[Array, " radii"]:
    """Computes robust accuracy as a function of the radius.

    Args:
        distances: Smallest known distance at which each example is misclassified; inf if none is.
        epsilons: Radii, >= 0.

    Returns:
        For each radius the fraction of examples with a larger distance. At radius 0 it is the
        natural accuracy.
    """
    return (distances[None, :] > epsilons[:, None]).mean(-1)


class _State(NamedTuple):
    x: Images  # point to evaluate next
    epsilon: PerExample  # radius of the ball `x` was projected onto
    adversarial: Images  # nearest misclassified point
    distance: PerExample  # its distance; inf before the first


def _recorded(state: _State, wrong: Selection, size: PerExample) -> _State:
    """Returns the state after the evaluation of `x`."""
    nearer = wrong & (size < state.distance)
    return state._replace(
        adversarial=norms.select(nearer, state.x, state.adversarial),
        distance=jnp.where(nearer, size, state.distance),
    )


def _to_boundary(margins: PerExample, gradient: Images, norm: str) -> PerExample:
    """Estimates the distance to the boundary to first order: |margin| over the dual norm."""
    if norm == "linf":
        slope = jnp.abs(gradient).sum((1, 2, 3))
    else:
        slope = norms.length(gradient, "l2")
    return jnp.where(slope > 0, jnp.abs(margins) / jnp.where(slope > 0, slope, 1.0), jnp.inf)
