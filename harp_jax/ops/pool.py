"""Max-pooling with a gradient that is fast on CPUs too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Computes `flax.linen.max_pool`, with a gradient of its own for 2x2 pooling on CPUs.

    That gradient covers 2x2 windows with stride 2 over batches of float32 images, without padding.
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


def _gradient_cpu(x: Array, y: Array, g: Array) -> Array:
    batch, rows, columns, channels = y.shape
    taken = jnp.zeros(y.shape, bool)
    parts = []
    for corner in _corners(x):
        wins = (corner == y) & ~taken
        taken |= wins
        parts.append(jnp.where(wins, g, jnp.zeros((), g.dtype)))
    halves = [jnp.stack(parts[:2], axis=3), jnp.stack(parts[2:], axis=3)]
    gradient = jnp.stack(halves, axis=2).reshape(batch, 2 * rows, 2 * columns, channels)
    rest = [(0, size - 2 * windows) for size, windows in zip(x.shape, y.shape, strict=True)]
    rest[0] = rest[3] = (0, 0)
    return jnp.pad(gradient, rest)


@jax.custom_vjp
def _pool(x: Array) -> Array:
    """Computes the maximum of 2x2 windows; the platform is chosen at lowering."""
    return lax.platform_dependent(x, cpu=_pool_cpu, default=_native)


def _pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = _pool(x)
    return y, (x, y)


def _pool_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, y = residuals
    gradient = lax.platform_dependent(
        x,
        y,
        g,
        cpu=_gradient_cpu,
        default=lambda x, y, g: jax.vjp(_native, x)[1](g)[0],
    )
    return (gradient,)


_pool.defvjp(_pool_forward, _pool_backward)
