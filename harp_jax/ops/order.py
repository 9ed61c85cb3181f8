"""Keeps XLA from computing an array twice, or too early.

XLA's CPU backend ignores `jax.lax.optimization_barrier`.
"""

import jax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from harp_jax import native


def computed_once(array: ArrayLike) -> Array:
    """Returns an array as it is; on CPUs all that reads it reads one copy in memory.

    XLA's CPU backend rather computes what is cheap again for each reader. If a reader overwrites
    what the array is computed from, as an update in place does, it copies that first. Without
    `native.available()`, and elsewhere, nothing is done. Not differentiable.
    """
    array = jax.numpy.asarray(array)
    if not native.available():
        return array
    return lax.platform_dependent(array, cpu=_same, default=lambda same: same)


def _same(array: Array) -> Array:
    return jax.ffi.ffi_call(
        "harp_same",
        jax.ShapeDtypeStruct(array.shape, array.dtype),
        input_output_aliases={0: 0},
        vmap_method="broadcast_all",
    )(array)


def zero_after(array: Array) -> Array:
    """Returns the number 0, of which the compiler only knows that it depends on the array.

    What is computed from it is computed after the array. XLA's CPU backend begins early with all
    that does not depend on anything, and keeps it in memory until it is needed.

    Args:
        array: Array of floats, not empty.

    Returns:
        0 as a scalar of the array's type, whatever the array holds.
    """
    number = array.ravel()[0]
    return ((number != number) & (number == 0)).astype(array.dtype)  # NaN is not 0
