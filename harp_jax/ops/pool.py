"""Max-pooling with a gradient that is fast on CPUs too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from harp_jax.native import BATCH_LAST


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Computes `flax.linen.max_pool`, with a gradient of its own for 2x2 pooling on CPUs.

    That gradient covers 2x2 windows with stride 2 over batches of float32 images of known sizes,
    without padding.
    All other calls, and all other platforms, use `flax.linen.max_pool`. Of equal pixels the first
    one, row by row, receives the gradient, on every platform. Calls that it covers can only be
    differentiated in reverse mode, on every platform.

    Args:
        x: Images [N, H, W, C], or any input of `flax.linen.max_pool`.
        window_shape: Size of the window, one per spatial axis.
        strides: Strides of the window, one per spatial axis; None means 1.
        padding: 'SAME', 'VALID', or (low, high), one per spatial axis.

    Returns:
        The maximum of each window.
    """
    window_shape = tuple(window_shape)
    strides = None if strides is None else tuple(strides)
    even = x.ndim == 4 and x.shape[1] % 2 == x.shape[2] % 2 == 0
    if isinstance(padding, str):
        unpadded = padding == "VALID" or (padding == "SAME" and even)
    else:
        unpadded = all(tuple(pad) == (0, 0) for pad in padding)
    if (
        window_shape == strides == (2, 2)
        and unpadded
        and x.ndim == 4
        and all(isinstance(size, int) for size in x.shape)
        and x.dtype == jnp.float32
        and min(x.shape[1:3]) >= 2
        and 0 not in x.shape
    ):
        return _pool(x)
    pool: Any = nn.max_pool  # its annotation allows only strings as padding
    return pool(x, window_shape, strides, padding)


def _native(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), (2, 2))


def _corners(x: Array) -> list[Array]:
    """Returns the four pixels of each full window, row by row."""
    bottom, right = (size - size % 2 for size in x.shape[1:3])
    return [x[:, i:bottom:2, j:right:2] for i in (0, 1) for j in (0, 1)]


def _pool_cpu(x: Array) -> Array:
    first, second, third, fourth = _corners(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _winner_cpu(x: Array) -> Array:
    """Returns which pixel of each window is its maximum, 0 to 3; of equal pixels the first one.

    It is found from the pixels alone. Comparing them with the maximum would lose a gradient
    where the compiler computes a pixel twice and rounds it in two ways.
    """
    first, second, third, fourth = _corners(x)
    top, bottom = jnp.maximum(first, second), jnp.maximum(third, fourth)
    upper = jnp.where(second > first, jnp.int8(1), jnp.int8(0))
    lower = jnp.where(fourth > third, jnp.int8(3), jnp.int8(2))
    return jnp.where(bottom > top, lower, upper)


def _gradient_cpu(x: Array, g: Array) -> Array:
    winner, (batch, rows, columns, channels) = _winner_cpu(x), g.shape
    parts = [jnp.where(winner == place, g, jnp.zeros((), g.dtype)) for place in range(4)]
    halves = [jnp.stack(parts[:2], axis=3), jnp.stack(parts[2:], axis=3)]
    gradient = jnp.stack(halves, axis=2).reshape(batch, 2 * rows, 2 * columns, channels)
    rest = [(0, size - 2 * windows) for size, windows in zip(x.shape, g.shape, strict=True)]
    rest[0] = rest[3] = (0, 0)
    return jnp.pad(gradient, rest)


@jax.custom_vjp
def _pool(x: Array) -> Array:
    """Computes the maximum of 2x2 windows; the platform is chosen at lowering."""
    return lax.platform_dependent(x, cpu=_pool_cpu, default=_native)


def _pool_forward(x: Array) -> tuple[Array, Array]:
    return _pool(x), x


def _pool_backward(x: Array, g: Array) -> tuple[Array]:
    gradient = lax.platform_dependent(
        x, g, cpu=_gradient_cpu, default=lambda x, g: jax.vjp(_native, x)[1](g)[0]
    )
    return (gradient,)


_pool.defvjp(_pool_forward, _pool_backward)


@jax.custom_vjp
def batch_last_max_pool(x: Float[Array, "_ _ _ _"]) -> Float[Array, "_ _ _ _"]:
    """Computes `max_pool(x, (2, 2), (2, 2))` between sparse convolutions.

    Values and gradient have the same bits. The batch is the last axis in memory, as there, so that
    nothing is transposed. It needs `native.available()`.

    Args:
        x: Images [N, H, W, C], float32, at least 2x2.

    Returns:
        The maximum of each window [N, H // 2, W // 2, C]. Differentiable in reverse mode.
    """
    batch, height, width, channels = x.shape
    out = jax.ShapeDtypeStruct((batch, height // 2, width // 2, channels), x.dtype)
    call = jax.ffi.ffi_call(
        "harp_pool",
        out,
        input_layouts=(BATCH_LAST,),
        output_layouts=BATCH_LAST,
        vmap_method="sequential",
    )
    return call(x)


def _batch_last_forward(x: Array) -> tuple[Array, Array]:
    return batch_last_max_pool(x), x


def _batch_last_backward(x: Array, g: Array) -> tuple[Array]:
    call = jax.ffi.ffi_call(
        "harp_pool_gradient",
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        input_layouts=(BATCH_LAST, BATCH_LAST),
        output_layouts=BATCH_LAST,
        vmap_method="sequential",
    )
    return (call(x, g),)


batch_last_max_pool.defvjp(_batch_last_forward, _batch_last_backward)
