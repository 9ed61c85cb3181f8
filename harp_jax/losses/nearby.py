"""The inner maximisation of TRADES and MART: ascent from a point close to the image."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from harp_jax.attacks import PGD, norms
from harp_jax.types import ExampleKeys, Images, Labels, Logits, LogitsFn, Scalar

# Standard deviation of the start's distance to the image, in every pixel and channel. At the image
# itself the divergence that TRADES ascends has no gradient.
START = 0.001

# (clean logits, adversarial logits, labels) -> what is ascended.
Ascended = Callable[[Logits, Logits, Labels], Scalar]


@dataclasses.dataclass(frozen=True)
class NearbyAscent:
    """Gradient ascent on a function of clean and adversarial logits, as an attack.

    It starts at the image plus `START` times standard normal noise; every step goes along the
    gradient's sign (L_inf) or direction (L2) and is projected onto the ball and the box. The clean
    logits are computed once. The authors' code computes them again at every step, with the same
    result, since the network is in inference mode and does not change during the attack.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        step_size: Length of a step, on the [0, 1] scale.
        steps: Number of gradient steps.
        ascended: Function of clean logits, adversarial logits and labels that the attack maximises.
        norm: 'linf' or 'l2'.
    """

    epsilon: float
    step_size: float
    steps: int
    ascended: Ascended
    norm: str = "linf"

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `harp_jax.attacks.PGD.__call__`."""
        clean_logits = logits_fn(images)
        gradient = jax.grad(lambda x: self.ascended(clean_logits, logits_fn(x), labels))

        def step(_, adversarial):
            moved = norms.ascend(adversarial, gradient(adversarial), self.step_size, self.norm)
            return norms.project(moved, images, self.epsilon, self.norm)

        noise = normal_noise(norms.per_example_keys(key, len(images)), images)
        return lax.fori_loop(0, self.steps, step, images + START * noise)


def normal_noise(keys: Key[Array, " batch"], images: Images) -> Images:
    """Draws standard normal noise; each example has its own key."""
    shape = images.shape[1:]
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def beside(configured: PGD, ascended: Ascended) -> NearbyAscent:
    """Builds an ascent on another function, in the ball and with the steps of a PGD."""
    return NearbyAscent(
        configured.epsilon, configured.step_size, configured.steps, ascended, configured.norm
    )
