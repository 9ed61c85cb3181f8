"""3x3 convolutions of stride 1 with a quarter of the multiplications (Winograd's F(4x4, 3x3)).

Images are split into 6x6 tiles that overlap by two pixels. Tiles d and filters w are transformed,
multiplied elementwise (one matrix product over the channels for each of the 36 positions), and
transformed back to 4x4 outputs (Lavin & Gray, "Fast Algorithms for Convolutional Neural
Networks", 2016):

    y = A^T [(G w G^T) * (B^T d B)] A

Sums are reordered and regrouped, so the result differs by rounding: the error is about 4e-6 of the
largest value, that of the plain sum about 1e-6 (`tests/ops/test_conv.py`). The gradient of the
filters is the transpose of the same bilinear form.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from harp_jax.ops.order import zero_after

OUTPUTS, TAPS = 4, 3  # per tile, along each axis
TILE = OUTPUTS + TAPS - 1
# Points at which the polynomial products are evaluated; infinity is added. Of those tried, these
# symmetric points lose the least precision, a third of what the textbook's 0, 1, -1, 2, -2 lose.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)

Features = Float[Array, "_ _ _ _"]  # NHWC
Filters = Float[Array, "3 3 _ _"]  # HWIO
Padding = tuple[tuple[int, int], tuple[int, int]]
Matrix = np.ndarray


def matrices(points: Sequence[float] = POINTS) -> tuple[Matrix, Matrix, Matrix]:
    """Constructs the matrices of F(m, r) by the Cook-Toom algorithm.

    A product of two polynomials is interpolated from its values at the points and at infinity
    (there it is the leading coefficient). Correlation is the transpose of this product.

    Args:
        points: Different numbers, m + r - 2 of them, with m = OUTPUTS and r = TAPS.

    Returns:
        Matrices B [tile, tile], G [tile, taps] and A [tile, outputs], float64, with
        y = A^T [(G w) * (B^T d)].

    Raises:
        ValueError: If the number of points is not m + r - 2, or two are equal.
    """
    if len(set(points)) != TILE - 1 or len(points) != TILE - 1:
        raise ValueError(f"points={points}: allowed are {TILE - 1} different numbers")
    others = [[q for q in points if q != p] for p in points]
    scale = np.array([np.prod(np.subtract(p, q)) for p, q in zip(points, others, strict=True)])

    def powers(count: int, scales: Matrix) -> Matrix:
        rows = [np.power(p, np.arange(count)) / s for p, s in zip(points, scales, strict=True)]
        return np.stack([*rows, np.eye(count)[-1]])

    polynomials = [np.polynomial.polynomial.polyfromroots(rest) for rest in others]
    whole = np.polynomial.polynomial.polyfromroots(points)
    b = np.stack([*(np.append(p, 0.0) for p in polynomials), whole], axis=1)
    return b, powers(TAPS, scale), powers(OUTPUTS, np.ones(TILE - 1))


_B, _G, _A = matrices()
# G . G^T on flattened filters: [(tile column, tile row), (row tap, column tap)].
_FILTERS = np.einsum("li,kj->lkji", _G, _G).reshape(TILE**2, TAPS**2).astype(np.float32)


def forward(x: Features, w: Filters, padding: Padding) -> Features:
    """Convolves images with 3x3 filters, stride 1.

    Args:
        x: Images [N, H, W, C_in].
        w: Filters [3, 3, C_in, C_out].
        padding: Zeros before and after, along height and width; negative values crop.

    Returns:
        The result of `lax.conv_general_dilated`.
    """
    batch, inputs = x.shape[0], x.shape[3]
    height, width = (n + sum(p) - TAPS + 1 for n, p in zip(x.shape[1:3], padding, strict=True))
    images = _input_tiles(x, padding)
    products = lax.dot_general(
        images.reshape(TILE * TILE, -1, inputs),
        _transformed(w),
        (((2,), (1,)), ((0,), (0,))),
    ).reshape(*images.shape[:-1], -1)
    rows, columns, outputs = products.shape[3:]
    part = jnp.stack(_combine(_A.T, list(products)), axis=-2)
    y = jnp.stack(_combine(_A.T, list(part)), axis=2)
    return y.reshape(batch, OUTPUTS * rows, OUTPUTS * columns, outputs)[:, :height, :width]


def input_gradient(g: Features, w: Filters, size: tuple[int, int], padding: Padding) -> Features:
    """Computes the gradient of the convolution with respect to its images.

    This is the transpose of `forward`, not a convolution with turned filters: the same transformed
    filters serve both, which matters where they are kept, as in the loop of an attack.

    Args:
        g: Gradient with respect to the output [N, H, W, C_out].
        w: Filters [3, 3, C_in, C_out].
        size: Height and width of the images, in pixels.
        padding: Padding of the convolution.

    Returns:
        The gradient [N, H, W, C_in].
    """
    gradients = _gradient_tiles(g)
    products = lax.dot_general(
        gradients.reshape(TILE * TILE, -1, g.shape[3]),
        _transformed(w),
        (((2,), (2,)), ((0,), (0,))),
    ).reshape(*gradients.shape[:-1], -1)
    (height, width), (above, left) = size, (low for low, _ in padding)
    part = jnp.stack(_overlapped(_combine(_B, list(products)), 3, tiles(width), left), axis=-2)
    x = jnp.stack(_overlapped(_combine(_B, list(part)), 1, tiles(height), above), axis=2)
    x = x.reshape(len(g), OUTPUTS * tiles(height), OUTPUTS * tiles(width), -1)
    return x[:, :height, :width]


def kernel_gradient(x: Features, g: Features, padding: Padding) -> Filters:
    """Computes the gradient of the convolution with respect to its filters.

    Args:
        x: Images [N, H, W, C_in].
        g: Gradient with respect to the output [N, H, W, C_out].
        padding: Padding of the convolution.

    Returns:
        The gradient [3, 3, C_in, C_out].
    """
    inputs, outputs = x.shape[3], g.shape[3]
    # The compiler would keep the tiles of `forward`, which are 2.25 times as large as the images.
    images = _input_tiles(x, padding, zero_after(g))
    gradients = _gradient_tiles(g)
    products = lax.dot_general(
        images.reshape(TILE * TILE, -1, inputs),
        gradients.reshape(TILE * TILE, -1, outputs),
        (((1,), (1,)), ((0,), (0,))),
    )
    gradient = _FILTERS.T @ products.reshape(TILE * TILE, -1)
    return gradient.reshape(TAPS, TAPS, inputs, outputs)


def tiles(size: int) -> int:
    """Returns the number of tiles that cover `size` outputs along one axis."""
    return -(-size // OUTPUTS)


def _transformed(w: Filters) -> Array:
    """Computes G w G^T of all filters [tile column and row, C_in, C_out]."""
    return (_FILTERS @ w.reshape(TAPS * TAPS, -1)).reshape(-1, *w.shape[2:])


def _input_tiles(x: Features, padding: Padding, zero: Array | None = None) -> Array:
    """Computes B^T d B of all tiles [tile column, tile row, batch, rows, columns, channels]."""
    zero = jnp.zeros((), x.dtype) if zero is None else zero
    pads, counts = [], []
    for size, (low, high) in zip(x.shape[1:3], padding, strict=True):
        count = tiles(size + low + high - TAPS + 1)
        pads.append((low, OUTPUTS * count + TAPS - 1 - size - low, 0))
        counts.append(count)
    x = lax.pad(x, zero, ((0, 0, 0), *pads, (0, 0, 0)))
    rows, columns = ((count - 1) * OUTPUTS + 1 for count in counts)
    x = jnp.stack(_combine(_B.T, [x[:, i : i + rows : OUTPUTS] for i in range(TILE)]))
    return jnp.stack(_combine(_B.T, [x[:, :, :, i : i + columns : OUTPUTS] for i in range(TILE)]))


def _gradient_tiles(g: Features) -> Array:
    """Computes A g A^T of all tiles, in the layout of `_input_tiles`."""
    pads = [(0, -size % OUTPUTS) for size in g.shape[1:3]]
    g = jnp.pad(g, ((0, 0), *pads, (0, 0)))
    g = jnp.stack(_combine(_A, [g[:, i::OUTPUTS] for i in range(OUTPUTS)]))
    return jnp.stack(_combine(_A, [g[:, :, :, i::OUTPUTS] for i in range(OUTPUTS)]))


def _overlapped(pixels: Sequence[Array], axis: int, count: int, low: int) -> list[Array]:
    """Adds up tiles that overlap, and cuts the sum into blocks of `OUTPUTS` pixels.

    Args:
        pixels: For each pixel of a tile, its values in all tiles along `axis`.
        axis: Axis of the tiles.
        count: Number of blocks.
        low: Pixel of the first tile at which the first block begins.

    Returns:
        For each pixel of a block, its values in all blocks along `axis`.
    """

    def shifted(values: Array, by: int) -> Array:
        pads = [(0, 0, 0)] * values.ndim
        pads[axis] = (-by, count + by - values.shape[axis], 0)
        return lax.pad(values, jnp.zeros((), values.dtype), pads)

    def block(pixel: int) -> Array:
        places = range((low + pixel) % OUTPUTS, TILE, OUTPUTS)
        met = [shifted(pixels[place], (low + pixel - place) // OUTPUTS) for place in places]
        return functools.reduce(jnp.add, met)

    return [block(pixel) for pixel in range(OUTPUTS)]


def _combine(matrix: Matrix, parts: Sequence[Array]) -> list[Array]:
    """Multiplies the matrix with the parts; returns one linear combination per row."""
    rows = []
    for row in matrix:
        terms = [np.float32(c) * part for c, part in zip(row, parts, strict=True) if c]
        rows.append(functools.reduce(jnp.add, terms))
    return rows
