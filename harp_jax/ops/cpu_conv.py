"""Two-dimensional convolution and its two gradients in forms that XLA compiles well for CPUs.

XLA's CPU backend has fast convolution kernels. It does not use them, and is 10 to 200 times slower,
when

* the dimension numbers are not canonical (NHWC, HWIO) and the convolution is inside a loop, as are
  the gradients that JAX derives for an attack, or
* the kernel is larger than the image: the compiler then swaps the operands and adds a reversal.

This module emits every convolution in canonical form, or as matrix products where these are faster.
All functions compute the same sums in another order. Spatial padding is (low, high) per axis.
"""

import functools
import itertools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from harp_jax import native
from harp_jax.ops import taps, winograd
from harp_jax.ops.geometry import Features, Filters, Padding, Pair, output_size, pad

LAYOUT = ("NHWC", "HWIO", "NHWC")

# The native kernel computes a whole vector of output channels; up to this number most is wasted.
_FEW_OUTPUTS = 4
# Winograd's transforms pay from this number of channels, in*out / (in + out), by the processor's
# maker, and from this number of tiles on (`python -m benchmarks.attack`).
_WINOGRAD_CHANNELS, _OTHERS_CHANNELS = {"AuthenticAMD": 16}, 40
_WINOGRAD_TILES = 64
# A kernel gradient is computed from pieces of images and output gradients that fit into the cache.
# Their number is bounded because each piece is compiled separately.
_PIECE_BYTES = 2**20
_MAX_PIECES = 8


def forward(
    x: Features, w: Filters, strides: Pair, padding: Padding, *, plain: bool = False
) -> Features:
    """Convolves images with filters.

    Args:
        x: Images [N, H, W, C_in].
        w: Filters [H, W, C_in, C_out].
        strides: Strides along height and width.
        padding: Zeros before and after, along height and width; negative values crop.
        plain: Whether to compute plain sums only, which have the smallest rounding errors.

    Returns:
        The result of `lax.conv_general_dilated` for the same arguments.
    """
    x, padding = _cropped(x, padding)
    (_, height, width, inputs), (kh, kw, _, outputs) = x.shape, w.shape
    if not plain and _winograd_pays(x, w.shape, strides, padding):
        return winograd.forward(x, w, padding)
    if (kh, kw) == (1, 1):
        return _pointwise(x, w, strides, padding)
    if kh * kw > height * width:
        return taps.forward(x, w, strides, padding)
    if outputs <= _FEW_OUTPUTS and strides == (1, 1):
        return _few_outputs(x, w, padding)
    if inputs == 1:
        return _one_input(x, w, strides, padding)
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)


def input_gradient(
    g: Features,
    w: Filters,
    size: Pair,
    strides: Pair,
    padding: Padding,
    *,
    plain: bool = False,
) -> Features:
    """Computes the gradient of the convolution with respect to its images.

    With strides, the input pixels are divided into phases by their (padded) position modulo the
    stride. Each phase depends on its own part of the filters, by one convolution of stride 1. This
    avoids the multiplications by zeros of a dilated gradient.

    Args:
        g: Gradient with respect to the output [N, H, W, C_out].
        w: Filters [H, W, C_in, C_out].
        size: Height and width of the images, in pixels.
        strides: Strides of the convolution.
        padding: Padding of the convolution.
        plain: Whether to compute plain sums only; see `forward`.

    Returns:
        The gradient [N, H, W, C_in].
    """
    batch, *output, _ = g.shape
    if strides == (1, 1):
        vertical, horizontal = (
            (k - 1 - p[0], n - o + p[0])
            for k, p, n, o in zip(w.shape[:2], padding, size, output, strict=True)
        )
        pads = vertical, horizontal
        if not plain and _winograd_pays(g, w.shape, strides, pads):
            return winograd.input_gradient(g, w, size, padding)
        if math.prod(w.shape[:2]) > math.prod(size):
            return taps.input_gradient(g, w, size, padding)
        if _fewer_pixels_than_channels(g):
            return taps.input_gradient_of_all(g, w, size, padding)
        return forward(g, _adjoint(w), strides, pads, plain=True)
    (sh, sw), inputs = strides, w.shape[2]
    rows, columns = (-(-(n + sum(p)) // s) for n, p, s in zip(size, padding, strides, strict=True))

    def phase(a: int, b: int) -> Features:
        part = w[a::sh, b::sw]
        kh, kw = part.shape[:2]
        if kh * kw == 0:  # the stride steps over these pixels
            return jnp.zeros((batch, rows, columns, inputs), g.dtype)
        pads = (kh - 1, rows - output[0]), (kw - 1, columns - output[1])
        return forward(g, _adjoint(part), (1, 1), pads, plain=True)

    phases = [jnp.stack([phase(a, b) for b in range(sw)], axis=3) for a in range(sh)]
    whole = jnp.stack(phases, axis=2).reshape(batch, rows * sh, columns * sw, inputs)
    top, left = padding[0][0], padding[1][0]
    return whole[:, top : top + size[0], left : left + size[1]]


def kernel_gradient(
    x: Features,
    g: Features,
    kernel: Pair,
    strides: Pair,
    padding: Padding,
    *,
    plain: bool = False,
) -> Filters:
    """Computes the gradient of the convolution with respect to its filters.

    Args:
        x: Images [N, H, W, C_in].
        g: Gradient with respect to the output [N, H, W, C_out].
        kernel: Height and width of the filters.
        strides: Strides of the convolution.
        padding: Padding of the convolution.
        plain: Whether to compute plain sums only; see `forward`.

    Returns:
        The gradient [H, W, C_in, C_out].
    """
    x, padding = _cropped(x, padding)
    (batch, height, width, inputs), (kh, kw) = x.shape, kernel
    if not plain and _winograd_pays(x, (*kernel, inputs, g.shape[3]), strides, padding):
        return winograd.kernel_gradient(x, g, padding)
    tiny = kh * kw > height * width or _fewer_pixels_than_channels(g)
    if kernel == (1, 1) or strides != (1, 1) or tiny:
        return taps.kernel_gradient(x, g, kernel, strides, padding)
    pieces = min(max(4 * (x.size + g.size) // _PIECE_BYTES, 1), _MAX_PIECES, batch)
    bounds = [batch * i // pieces for i in range(pieces + 1)]
    parts = (
        _kernel_gradient_by_convolution(x[low:high], g[low:high], kernel, padding)
        for low, high in itertools.pairwise(bounds)
    )
    return functools.reduce(jnp.add, parts)


def _winograd_pays(x: Features, filters: tuple[int, ...], strides: Pair, padding: Padding) -> bool:
    """Returns whether Winograd's form computes a convolution or its adjoint faster."""
    batch, *size, _ = x.shape
    kh, kw, inputs, outputs = filters
    if (kh, kw, *strides) != (winograd.TAPS, winograd.TAPS, 1, 1):
        return False
    counts = [output_size(n, winograd.TAPS, 1, p) for n, p in zip(size, padding, strict=True)]
    tiles = math.prod(map(winograd.tiles, counts))
    filled = math.prod(counts) / (tiles * winograd.OUTPUTS**2)
    least = _WINOGRAD_CHANNELS.get(native.processor_maker(), _OTHERS_CHANNELS)
    return (
        inputs * outputs * filled >= least * (inputs + outputs) and batch * tiles >= _WINOGRAD_TILES
    )


def _fewer_pixels_than_channels(g: Features) -> bool:
    """Returns whether products for each tap take less memory than turned filters."""
    return g.size <= g.shape[3] ** 2


def _adjoint(w: Filters) -> Filters:
    """Returns the filters of the adjoint: rotated by 180 degrees, inputs and outputs swapped.

    The rows are concatenated one by one: the compiler moves a concatenation and its operands out of
    an attack's loop, but not a reversal with a transposition.
    """
    turned = w[:, ::-1].transpose(0, 1, 3, 2)
    return jnp.concatenate([turned[i : i + 1] for i in reversed(range(len(w)))])


def _cropped(x: Features, padding: Padding) -> tuple[Array, Padding]:
    """Pads images whose padding crops, where XLA:CPU may be wrong (openxla/xla issue 48713)."""
    if min(*padding[0], *padding[1]) >= 0:
        return x, padding
    return pad(x, padding), ((0, 0), (0, 0))


def _pointwise(x: Features, w: Filters, strides: Pair, padding: Padding) -> Features:
    """Computes a 1x1 convolution as one matrix product over the pixels."""
    x = pad(x, padding)[:, :: strides[0], :: strides[1]]
    inputs, outputs = w.shape[2:]
    return (x.reshape(-1, inputs) @ w.reshape(inputs, outputs)).reshape(*x.shape[:3], outputs)


def _few_outputs(x: Features, w: Filters, padding: Padding) -> Features:
    """Convolves to few output channels: one matrix product for all taps, then a shifted sum."""
    kh, kw, inputs, outputs = w.shape
    batch, height, width = x.shape[:3]
    rows = output_size(height, kh, 1, padding[0])
    columns = output_size(width, kw, 1, padding[1])
    taps = x.reshape(-1, inputs) @ w.transpose(2, 0, 1, 3).reshape(inputs, -1)
    planes = pad(taps.reshape(batch, height, width, -1), padding)
    total = jnp.zeros((batch, rows, columns, outputs), x.dtype)
    for i in range(kh):
        for j in range(kw):
            first = (i * kw + j) * outputs
            total += planes[:, i : i + rows, j : j + columns, first : first + outputs]
    return total


def _one_input(x: Features, w: Filters, strides: Pair, padding: Padding) -> Features:
    """Convolves one input channel: the rows under the filter become channels."""
    kh, kw, _, outputs = w.shape
    rows = output_size(x.shape[1], kh, strides[0], padding[0])
    x = pad(x, (padding[0], (0, 0)))
    stacked = jnp.concatenate([_strided(x, 1, i, rows, strides[0]) for i in range(kh)], axis=3)
    flat = w.transpose(1, 0, 2, 3).reshape(1, kw, -1, outputs)
    return lax.conv_general_dilated(
        stacked, flat, (1, strides[1]), ((0, 0), padding[1]), dimension_numbers=LAYOUT
    )


def _strided(x: Features, axis: int, start: int, count: int, stride: int) -> Features:
    """Slices `count` rows or columns, `stride` apart."""
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def _kernel_gradient_by_convolution(
    x: Features, g: Features, kernel: Pair, padding: Padding
) -> Filters:
    """Computes the gradient by a convolution of images and output gradient over the batch."""
    pads = [
        (p[0], o + k - 1 - n - p[0])
        for n, o, k, p in zip(x.shape[1:3], g.shape[1:3], kernel, padding, strict=True)
    ]
    images, gradients = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    gradient = lax.conv_general_dilated(images, gradients, (1, 1), pads, dimension_numbers=LAYOUT)
    return gradient.transpose(1, 2, 0, 3)
