"""Score-space sharpness: takes the loss at the worst masks around the current scores.

S2AP (Piras et al., 2025, arXiv:2510.18381) learns scores s by min_s max_z L(M(s + z)), with the
perturbation of every layer bounded by that layer's scores, ||z_l|| <= gamma * ||s_l||. To first
order the maximum is at the bound, along the gradient of the loss with respect to the scores.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harp_jax.methods.base import Ascend, Setting
from harp_jax.methods.wrapped import Wrapped
from harp_jax.settings import check
from harp_jax.types import Scores


def ascend(scores: Any, gradient: Any, sharpness: float) -> Any:
    """Moves scores up the loss, layer by layer: s_l + sharpness * ||s_l|| * g_l / ||g_l||.

    Args:
        scores: A tree of score arrays, one a layer.
        gradient: The (straight-through) gradient of the loss, in the same structure.
        sharpness: Length of the step relative to that of the layer's scores, gamma in the paper,
            >= 0.

    Returns:
        The perturbed scores; the scores of a layer with zero gradient do not change.
    """

    def move(layer: Scores, direction: Scores) -> Scores:
        length = jnp.linalg.norm(direction.ravel())
        scale = sharpness * jnp.linalg.norm(layer.ravel()) / jnp.where(length > 0, length, 1.0)
        return layer + scale * direction

    return jax.tree.map(move, scores, gradient)


@dataclasses.dataclass(frozen=True)
class Sharpness(Wrapped):
    """S2AP around a method that learns scores; a step costs one more forward and backward pass.

    Reference: Piras et al., 2025, arXiv:2510.18381.

    Attributes:
        method: The method inside.
        sharpness: See `ascend`, > 0.
    """

    sharpness: float

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "sharpness", self.sharpness > 0, "numbers > 0")

    def ascend(self, setting: Setting) -> Ascend:
        """Returns the ascent, which is the same for layers that share channels."""
        tie: Any = setting.scheme.tie

        def perturbed(scores: Any, gradient: Any) -> Any:
            if tie is not None:
                gradient = tie.update({"scores": gradient}, optax.EmptyState())[0]["scores"]
            return ascend(scores, gradient, self.sharpness)

        return perturbed
