"""3x3 convolutions of stride 1 with a quarter of the multiplications (Winograd's F(4x4, 3x3)).

Images are cut into tiles of 6x6 pixels that overlap by two. Tiles d and filters w are transformed,
multiplied elementwise (a matrix product over the channels for each of the 36 places), and
transformed back into 4x4 outputs (Lavin & Gray, "Fast Algorithms for Convolutional Neural
Networks", 2016):

    y = A^T [(G w G^T) * (B^T d B)] A

These are exact sums in another order and grouping, so the result differs by rounding: the error is
about 4e-6 of the largest value, where the plain sum's is about 1e-6 (`tests/ops/test_conv.py`).
The gradient of the filters is the transpose of the same bilinear form.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

OUTPUTS, TAPS = 4, 3  # of a tile, along each axis
TILE = OUTPUTS + TAPS - 1
# The points at which the polynomial products are evaluated, and infinity. Symmetric ones around 1
# lose the least precision of those tried; the textbook's 0, 1, -1, 2, -2 lose three times as much.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)

Features = Float[Array, "_ _ _ _"]  # NHWC
Filters = Float[Array, "3 3 _ _"]  # HWIO
Padding = tuple[tuple[int, int], tuple[int, int]]
Matrix = np.ndarray


def matrices(points: Sequence[float] = POINTS) -> tuple[Matrix, Matrix, Matrix]:
    """The matrices of F(m, r) by the Cook-Toom construction.

    The product of two polynomials is found from its values at the points (the last one is infinity,
    where the value is the leading coefficient); correlation is its transpose.

    Args:
        points: m + r - 2 different numbers, with m = OUTPUTS and r = TAPS.

    Returns:
        B `[tile, tile]`, G `[tile, taps]` and A `[tile, outputs]` with
        y = A^T [(G w) * (B^T d)], in float64.

    Raises:
        ValueError: if there are other than m + r - 2 points, or two are equal.
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
# G . G^T on flattened filters: [(column place, row place), (row tap, column tap)].
_FILTERS = np.einsum("li,kj->lkji", _G, _G).reshape(TILE**2, TAPS**2).astype(np.float32)


def forward(x: Features, w: Filters, padding: Padding, *, adjoint: bool = False) -> Features:
    """Convolves images with 3x3 filters, stride 1.

    Args:
        x: images.
        w: filters.
        padding: zeros to add before and after, along height and width; negative values crop.
        adjoint: take the filters turned by 180 degrees, with inputs and outputs swapped. Nothing is
            moved for it: the transform has another matrix, the product another axis.

    Returns:
        What `lax.conv_general_dilated` returns for them.
    """
    batch, inputs = x.shape[0], x.shape[3]
    turned = _FILTERS[:, ::-1] if adjoint else _FILTERS
    filters = (turned @ w.reshape(TAPS * TAPS, -1)).reshape(-1, *w.shape[2:])
    height, width = (n + sum(p) - TAPS + 1 for n, p in zip(x.shape[1:3], padding, strict=True))
    images = _input_tiles(x, padding)
    products = lax.dot_general(
        images.reshape(TILE * TILE, -1, inputs),
        filters,
        (((2,), (2 if adjoint else 1,)), ((0,), (0,))),
    ).reshape(*images.shape[:-1], -1)
    rows, columns, outputs = products.shape[3:]
    part = jnp.stack(_combine(_A.T, list(products)), axis=-2)
    y = jnp.stack(_combine(_A.T, list(part)), axis=2)
    return y.reshape(batch, OUTPUTS * rows, OUTPUTS * columns, outputs)[:, :height, :width]


def kernel_gradient(x: Features, g: Features, padding: Padding) -> Filters:
    """Gradient of the convolution with respect to its filters.

    Args:
        x: images.
        g: gradient with respect to the output.
        padding: padding of the convolution.

    Returns:
        `[3, 3, in, out]`.
    """
    inputs, outputs = x.shape[3], g.shape[3]
    images, gradients = _input_tiles(x, padding), _gradient_tiles(g)
    products = lax.dot_general(
        images.reshape(TILE * TILE, -1, inputs),
        gradients.reshape(TILE * TILE, -1, outputs),
        (((1,), (1,)), ((0,), (0,))),
    )
    gradient = _FILTERS.T @ products.reshape(TILE * TILE, -1)
    return gradient.reshape(TAPS, TAPS, inputs, outputs)


def tiles(size: int) -> int:
    """Number of tiles that cover so many outputs, along one axis."""
    return -(-size // OUTPUTS)


def _input_tiles(x: Features, padding: Padding) -> Array:
    """B^T d B of all tiles: [column place, row place, batch, rows, columns, channels]."""
    pads, counts = [], []
    for size, (low, high) in zip(x.shape[1:3], padding, strict=True):
        count = tiles(size + low + high - TAPS + 1)
        pads.append((low, OUTPUTS * count + TAPS - 1 - size - low, 0))
        counts.append(count)
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    rows, columns = ((count - 1) * OUTPUTS + 1 for count in counts)
    x = jnp.stack(_combine(_B.T, [x[:, i : i + rows : OUTPUTS] for i in range(TILE)]))
    return jnp.stack(_combine(_B.T, [x[:, :, :, i : i + columns : OUTPUTS] for i in range(TILE)]))


def _gradient_tiles(g: Features) -> Array:
    """A g A^T of all tiles, laid out as `_input_tiles` does."""
    pads = [(0, -size % OUTPUTS) for size in g.shape[1:3]]
    g = jnp.pad(g, ((0, 0), *pads, (0, 0)))
    g = jnp.stack(_combine(_A, [g[:, i::OUTPUTS] for i in range(OUTPUTS)]))
    return jnp.stack(_combine(_A, [g[:, :, :, i::OUTPUTS] for i in range(OUTPUTS)]))


def _combine(matrix: Matrix, parts: Sequence[Array]) -> list[Array]:
    """The rows of the matrix as linear combinations of the parts."""
    rows = []
    for row in matrix:
        terms = [np.float32(c) * part for c, part in zip(row, parts, strict=True) if c]
        rows.append(functools.reduce(jnp.add, terms))
    return rows
