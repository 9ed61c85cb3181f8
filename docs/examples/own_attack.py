"""An attack of one's own: MIM, PGD with momentum.

    --config.evaluate.run="('pgd20','mim')"

after `config.evaluate.attacks.mim = {"type": "own_attack:MIM", "epsilon": 0.1, "step_size": 0.025}`
in the configuration's file. Any frozen dataclass with `epsilon` and this call is an attack.

Reference: Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from harp_jax.attacks import norms
from harp_jax.settings import check


@dataclasses.dataclass(frozen=True)
class MIM:
    """Steps along the sign of a decaying sum of normalised gradients.

    Attributes:
        epsilon: Radius of the L_inf ball, on the [0, 1] scale.
        step_size: Length of a step.
        steps: Number of steps, >= 1.
        decay: Of the sum, in [0, 1].
        norm: Only 'linf'.
    """

    epsilon: float
    step_size: float
    steps: int = 10
    decay: float = 1.0
    norm: str = "linf"

    def __post_init__(self):
        check(self, "steps", self.steps >= 1, "whole numbers >= 1")
        check(self, "decay", 0 <= self.decay <= 1, "numbers in [0, 1]")
        check(self, "norm", self.norm == "linf", "linf")

    def __call__(self, logits_fn, images, labels, key):
        del key  # nothing is random

        def loss(points):
            logits = logits_fn(points)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

        def step(_, carry):
            points, momentum = carry
            gradient = jax.grad(loss)(points)
            size = jnp.abs(gradient).mean((1, 2, 3), keepdims=True)
            momentum = self.decay * momentum + gradient / jnp.maximum(size, 1e-12)
            points = norms.ascend(points, momentum, self.step_size, self.norm)
            return norms.project(points, images, self.epsilon, self.norm), momentum

        return lax.fori_loop(0, self.steps, step, (images, jnp.zeros_like(images)))[0]
