"""Shapes of two-dimensional convolutions: types, sizes and padding, along height and width."""

from typing import TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[Pair, Pair]
# Axes have no names, because the sizes of a convolution's input and output differ.
Features: TypeAlias = Float[Array, "_ _ _ _"]  # NHWC
Filters: TypeAlias = Float[Array, "_ _ _ _"]  # HWIO


def output_size(size: int, kernel: int, stride: int, padding: Pair) -> int:
    """Returns the output size along one axis; it is below 1 if the kernel does not fit."""
    return (size + sum(padding) - kernel) // stride + 1


def pad(x: Features, padding: Padding) -> Array:
    """Adds zeros around images, or crops them where the padding is negative."""
    if padding == ((0, 0), (0, 0)):
        return x
    spatial = [(low, high, 0) for low, high in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *spatial, (0, 0, 0)))
