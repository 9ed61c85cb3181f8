"""Convolution and its gradients by one matrix product for each tap of the filters.

Each product is of the filters at a tap and the pixels that it meets, or of all pixels. For images
that are small, or have few pixels and many channels, this is faster than other forms and needs no
copy of the filters. Spatial padding is (low, high) per axis.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from harp_jax.ops.geometry import Features, Filters, Padding, Pair, output_size, pad


def forward(x: Features, w: Filters, strides: Pair, padding: Padding) -> Features:
    """Convolves small images by one matrix product for each tap, with the pixels that it meets."""
    size, kernel = x.shape[1:3], w.shape[:2]
    output = [output_size(*each) for each in zip(size, kernel, strides, padding, strict=True)]
    return functools.reduce(
        jnp.add,
        (
            _placed(x[:, *pixels] @ w[tap], outputs, output)
            for tap, outputs, pixels in _meetings(kernel, strides, padding, size, output)
            if x[:, *pixels].size
        ),
        jnp.zeros((len(x), *output, w.shape[3]), x.dtype),
    )


def input_gradient(g: Features, w: Filters, size: Pair, padding: Padding) -> Features:
    """Computes the gradient of `forward` with stride 1, by the same matrices."""
    return functools.reduce(
        jnp.add,
        (
            _placed(g[:, *outputs] @ w[tap].T, pixels, size)
            for tap, outputs, pixels in _meetings(w.shape[:2], (1, 1), padding, size, g.shape[1:3])
            if g[:, *outputs].size
        ),
        jnp.zeros((len(g), *size, w.shape[2]), g.dtype),
    )


def _placed(x: Features, place: tuple[slice, slice], size: Sequence[int]) -> Features:
    """Adds zeros around images, so that they lie at a place of larger ones."""
    vertical, horizontal = (
        (part.start, n - part.stop) for part, n in zip(place, size, strict=True)
    )
    return pad(x, (vertical, horizontal))


def input_gradient_of_all(g: Features, w: Filters, size: Pair, padding: Padding) -> Features:
    """Computes the gradient, with stride 1, by one matrix product for all taps and a shifted sum.

    With fewer pixels than channels the products take less memory than turned filters, which an
    attack keeps during its loop.
    """
    kh, kw, inputs, outputs = w.shape
    products = lax.dot_general(
        g.reshape(-1, outputs), w.reshape(-1, outputs), (((1,), (1,)), ((), ()))
    ).reshape(*g.shape[:3], kh, kw, inputs)

    def shifted(*tap: int) -> Array:
        pads = [
            (i - p[0], n - o - i + p[0])
            for i, p, n, o in zip(tap, padding, size, g.shape[1:3], strict=True)
        ]
        return pad(products[:, :, :, *tap], (pads[0], pads[1]))

    taps = itertools.product(range(kh), range(kw))
    return functools.reduce(jnp.add, itertools.starmap(shifted, taps))


def kernel_gradient(
    x: Features, g: Features, kernel: Pair, strides: Pair, padding: Padding
) -> Filters:
    """Computes the gradient by one product per tap, of output gradient and pixels under it."""
    inputs, outputs = x.shape[3], g.shape[3]
    products = [
        lax.dot_general(
            x[:, *under].reshape(-1, inputs),
            g[:, *at].reshape(-1, outputs),
            (((0,), (0,)), ((), ())),
        )
        for _, at, under in _meetings(kernel, strides, padding, x.shape[1:3], g.shape[1:3])
    ]
    return jnp.stack(products).reshape(*kernel, inputs, outputs)


def _meetings(
    kernel: Sequence[int],
    strides: Pair,
    padding: Padding,
    size: Sequence[int],
    output: Sequence[int],
) -> Iterator[tuple[Pair, tuple[slice, slice], tuple[slice, slice]]]:
    """Yields each tap, the outputs whose tap is inside the image, and the pixels under it."""
    for tap in itertools.product(*map(range, kernel)):
        axes = zip(tap, strides, padding, size, output, strict=True)
        (rows, pixels_y), (columns, pixels_x) = (_met(i, s, p[0], n, o) for i, s, p, n, o in axes)
        yield (tap[0], tap[1]), (rows, columns), (pixels_y, pixels_x)


def _met(tap: int, stride: int, low: int, size: int, count: int) -> tuple[slice, slice]:
    """Slices, along one axis, the outputs whose tap is inside the image, and their pixels."""
    first = max(-(-(low - tap) // stride), 0)
    last = max(min((size - 1 + low - tap) // stride + 1, count), first)
    start = tap - low + first * stride
    return slice(first, last), slice(start, start + (last - first) * stride, stride)
