"""Balls around an image: random points in them, steepest ascent, projection onto them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from harp_jax.types import ExampleKeys, Images

NORMS = ("linf",)


def per_example_keys(key: ExampleKeys, batch: int) -> Key[Array, " batch"]:
    """One key per example: those given, or the one key folded with the example's place."""
    if key.ndim == 1:
        return key
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch))


def uniform_noise(keys: Key[Array, " batch"], images: Images, epsilon: float) -> Images:
    """Noise uniform in the L_inf ball of radius `epsilon`; each example from its own key."""
    shape = images.shape[1:]
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-epsilon, maxval=epsilon))(
        keys
    )


def ascend(
    images: Images, gradient: Images, step_size: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """One step of steepest ascent in L_inf: by `step_size` along the gradient's sign."""
    return images + step_size * jnp.sign(gradient)


def project(adversarial: Images, images: Images, epsilon: float) -> Images:
    """Nearest point of the L_inf ball around `images`, then of the box [0, 1]."""
    return jnp.clip(jnp.clip(adversarial, images - epsilon, images + epsilon), 0.0, 1.0)
