"""Balls around an image: random points in them, steepest ascent, projection onto them.

Lengths are measured in `norm`, one of `NORMS`, on the [0, 1] scale of the images. A radius or step
size is one number, or one per example in the shape of `expand`.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from harp_jax.types import ExampleKeys, Images, PerExample, Selection

NORMS = ("linf", "l2")

Length: TypeAlias = Float[Array, ""] | Float[Array, "#batch 1 1 1"] | float


def per_example_keys(key: ExampleKeys, batch: int) -> Key[Array, " batch"]:
    """Returns one key per example: the given ones, or one key folded with the index."""
    if key.ndim == 1:
        return key
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch))


def fold_keys(keys: Key[Array, " batch"], number: Array | int) -> Key[Array, " batch"]:
    """Folds each key with the number of a run, which may be traced."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def expand(values: Shaped[Array, " batch"]) -> Shaped[Array, "batch 1 1 1"]:
    """Reshapes one value per example so that it broadcasts with images."""
    return values[:, None, None, None]


def select(chosen: Selection, images: Images, others: Images) -> Images:
    """Takes the chosen examples from `images`, the rest from `others`."""
    return jnp.where(expand(chosen), images, others)


def length(differences: Images, norm: str = "linf") -> PerExample:
    """Computes the length of each example's difference; raises a ValueError for other norms."""
    flat = differences.reshape(len(differences), -1)
    if norm == "linf":
        return jnp.abs(flat).max(-1)
    if norm != "l2":
        raise ValueError(f"norm={norm!r}: allowed are {', '.join(NORMS)}")
    return jnp.sqrt((flat**2).sum(-1))


def uniform_noise(
    keys: Key[Array, " batch"], images: Images, epsilon: float, norm: str = "linf"
) -> Images:
    """Draws noise uniformly in the ball of radius `epsilon`, each example from its own key."""
    shape = images.shape[1:]
    if norm == "linf":
        return _drawn(
            keys, lambda key: jax.random.uniform(key, shape, minval=-epsilon, maxval=epsilon)
        )
    # The radius of a uniform point of a ball in d dimensions is distributed as U^(1/d).
    directions = _unit(_drawn(fold_keys(keys, 0), lambda key: jax.random.normal(key, shape)))
    uniform = _drawn(fold_keys(keys, 1), lambda key: jax.random.uniform(key))
    return directions * expand(epsilon * uniform ** (1 / images[0].size))


def surface_noise(
    keys: Key[Array, " batch"], images: Images, epsilon: float, norm: str = "linf"
) -> Images:
    """Draws noise of length exactly `epsilon`, as the published APGD does for its start.

    L_inf: uniform noise, scaled so that its largest entry has size `epsilon`. L2: scaled normal
    noise. Each example uses its own key.
    """
    shape = images.shape[1:]
    if norm == "linf":
        noise = _drawn(keys, lambda key: jax.random.uniform(key, shape, minval=-1.0))
        return epsilon * noise / expand(length(noise, "linf"))
    return epsilon * _unit(_drawn(keys, lambda key: jax.random.normal(key, shape)))


def excess(adversarial: Images, images: Images, epsilon: float, norm: str = "linf") -> PerExample:
    """Returns how far each example lies outside its ball or [0, 1].

    It is <= 0 inside. It is nan if a value is not finite, which is looked for on its own: XLA may
    drop NaN from a maximum.
    """
    pixels = adversarial.reshape(len(images), -1)
    outside = jnp.maximum(-pixels.min(-1), pixels.max(-1) - 1.0)
    farthest = jnp.maximum(outside, length(adversarial - images, norm) - epsilon)
    return jnp.where(jnp.isfinite(pixels).all(-1), farthest, jnp.nan)


def largest(values: Float[Array, " n"]) -> Float[Array, ""]:
    """Returns the largest value; nan if one is nan, which XLA may drop from a maximum."""
    return jnp.where(jnp.isnan(values).any(), jnp.nan, values.max())


def ascend(
    images: Images, gradient: Images, step_size: Length, norm: str = "linf"
) -> Float[Array, "..."]:
    """Steps by `step_size` along the steepest ascent: the gradient's sign, or its direction (L2).

    A zero gradient gives no step, nor does NaN, which logits of 1e30 may give.
    """
    gradient = jnp.nan_to_num(gradient)
    direction = jnp.sign(gradient) if norm == "linf" else _unit(gradient)
    return images + step_size * direction


def project(adversarial: Images, images: Images, epsilon: Length, norm: str = "linf") -> Images:
    """Projects onto the ball around `images`, then onto the box [0, 1].

    The images are in the box, so the second projection does not leave the ball.
    """
    if norm == "linf":
        return jnp.clip(jnp.clip(adversarial, images - epsilon, images + epsilon), 0.0, 1.0)
    differences = adversarial - images
    size = expand(length(differences, "l2"))
    # The factor is exactly 1 inside the ball; zero length is divided by 1.
    factor = jnp.where(size > epsilon, epsilon / jnp.where(size > 0, size, 1.0), 1.0)
    return jnp.clip(images + factor * differences, 0.0, 1.0)


def _drawn(keys: Key[Array, " batch"], draw: Callable[[Array], Array]) -> Float[Array, "batch ..."]:
    return jax.vmap(draw)(keys)


def _unit(vectors: Images) -> Images:
    """Normalises vectors in L2; zero stays zero.

    They are divided by their largest entry first: the gradients of a confident network can be as
    small as 1e-25, and their squares would be zero in float32.
    """
    largest = length(vectors, "linf")
    scaled = vectors / expand(jnp.where(largest > 0, largest, 1.0))
    # The length of a scaled vector is at least 1, unless it is zero.
    return scaled / expand(jnp.maximum(length(scaled, "l2"), 1.0))
