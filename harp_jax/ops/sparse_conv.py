"""Convolution that touches only the kept weights of a pruned kernel, for CPUs.

The images stand on the last axis in memory, so that each kept weight is one multiply-add over
contiguous floats. Arrays have their usual axes [N, height, width, channels] all the same: XLA is
asked for that layout, and gives it to what stands between two layers, too.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from harp_jax import native
from harp_jax.native import BATCH_LAST, WIDTH_LAST
from harp_jax.ops.geometry import Padding, Pair, output_size
from harp_jax.ops.order import zero_after

Features = Float[Array, "_ _ _ _"]  # NHWC; sizes differ between a convolution's input and output
Values = Float[Array, " kept"]

# Shares of the weights up to which sparse computation wins: with few images, with many, and with
# many and few weights a channel.
_SMALLEST, _SMALL, _LARGEST = 0.06, 0.1, 0.4
_FEW = 100
FEW_IMAGES = 16  # fewer do not fill the lanes of the processor


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """The weights of a kernel that a mask kept, in a fixed order: by output, then by place.

    Attributes:
        shape: (height, width, inputs, outputs) of the kernel.
        index: Row, column, input and output of each kept weight.
    """

    shape: tuple[int, int, int, int]
    index: Int[np.ndarray, "kept 4"]

    @property
    def share(self) -> float:
        """Share of the kernel's weights that are kept."""
        return len(self.index) / max(math.prod(self.shape), 1)

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "_ _ _ _"]) -> "Kept":
        """Lists the kept weights of a mask [height, width, inputs, outputs]."""
        index = np.argwhere(np.asarray(mask)).astype(np.int32)
        return cls(mask.shape, index[np.argsort(index[:, 3], kind="stable")])

    def values(self, kernel: Float[Array, "_ _ _ _"]) -> Values:
        """Takes the kept weights out of a kernel; differentiable in reverse mode."""
        index = tuple(self.index.T)

        def take(kernel: Array) -> Array:
            return kernel[index]

        def put(_: None, gradient: Array) -> tuple[Array]:
            zero = zero_after(gradient) if gradient.size else jnp.zeros((), gradient.dtype)
            return (jnp.full(self.shape, zero).at[index].set(gradient, unique_indices=True),)

        differentiable = jax.custom_vjp(take)
        differentiable.defvjp(lambda kernel: (take(kernel), None), put)
        return differentiable(kernel)


@dataclasses.dataclass(frozen=True)
class _Move:
    """Which pixel is read: ((pixel written * stride + start) // up, of one phase) + displacement.

    `up` is 1 but for the gradient of a convolution with strides, whose pixels fall into phases.
    """

    stride: Pair
    up: Pair
    start: Pair

    def attributes(self) -> dict[str, np.int64]:
        """Returns the attributes of the native kernels; the CPU devices share its cores."""
        numbers = (jax.local_device_count("cpu"), *self.stride, *self.up, *self.start)
        names = ("devices", "stride_y", "stride_x", "up_y", "up_x", "top", "left")
        return {name: np.int64(number) for name, number in zip(names, numbers, strict=True)}


def pays(kept: Kept) -> bool:
    """Returns whether the convolution is faster than a dense one, by `benchmarks.sparse_layers`."""
    share = kept.share
    few = len(kept.index) <= _FEW * kept.shape[3]
    return share <= _SMALL or (few and share <= _LARGEST)


def pays_with(images: int, kept: Kept) -> bool:
    """Returns whether a convolution that `pays` does so with this number of images too."""
    return images >= FEW_IMAGES or kept.share <= _SMALLEST


def conv(images: Features, values: Values, kept: Kept, strides: Pair, padding: Padding) -> Features:
    """Convolves images with the kept weights of a kernel.

    Args:
        images: [N, height, width, inputs], float32.
        values: The kept weights, in the order of `kept`.
        kept: Where they are in the kernel.
        strides: Along height and width.
        padding: Zeros before and after, along height and width; negative values crop.

    Returns:
        The convolution [N, height, width, outputs]. Differentiable in images and values in reverse
        mode.

    Raises:
        NotImplementedError: If `native.available()` is false.
        ValueError: If channels or the number of values do not fit.
    """
    if not native.available():
        raise NotImplementedError("sparse convolution needs a CPU and a C++ compiler; see the log")
    if images.shape[-1] != kept.shape[2]:
        raise ValueError(f"images have {images.shape[-1]} channels; allowed are {kept.shape[2]}")
    if values.shape != (len(kept.index),):
        raise ValueError(f"values have shape {values.shape}; allowed is ({len(kept.index)},)")
    size = tuple(map(output_size, images.shape[1:3], kept.shape[:2], strides, padding))
    forward = _Gather(_forward_lists(kept), (*size, kept.shape[3]), _start(strides, padding))
    backward = _Gather(_backward_lists(kept, strides), images.shape[1:], _back(strides, padding))
    return _differentiable(forward, backward)(images, values)


def _start(strides: Pair, padding: Padding) -> _Move:
    return _Move(strides, (1, 1), (-padding[0][0], -padding[1][0]))


def _back(strides: Pair, padding: Padding) -> _Move:
    return _Move((1, 1), strides, (padding[0][0], padding[1][0]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Lists:
    """Kept weights in the order in which a pass needs them.

    Attributes:
        order: Of the values.
        places: [kept, 3]: displacement down and right, channel that is read.
        starts: Where each list begins: one for each phase and written channel.
    """

    order: np.ndarray
    places: np.ndarray
    starts: np.ndarray


def _lists(places: np.ndarray, number: np.ndarray, lists: int) -> _Lists:
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(lists + 1))
    return _Lists(order, places[order].astype(np.int32), starts.astype(np.int32))


def _forward_lists(kept: Kept) -> _Lists:
    return _lists(kept.index[:, :3], kept.index[:, 3], kept.shape[3])


def _backward_lists(kept: Kept, strides: Pair) -> _Lists:
    row, column, channel, output = kept.index.T
    phase = row % strides[0] * strides[1] + column % strides[1]
    places = np.stack([-(row // strides[0]), -(column // strides[1]), output], axis=1)
    inputs = kept.shape[2]
    return _lists(places, phase * inputs + channel, strides[0] * strides[1] * inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Gather:
    """A pass over an image: what is summed for each channel of each pixel that is written."""

    lists: _Lists
    shape: tuple[int, ...]
    move: _Move

    def __call__(self, images: Array, values: Array) -> Array:
        # The lanes of the processor are images, or pixels if there are few images.
        few = len(images) < FEW_IMAGES and self.move.up == (1, 1)
        layout = WIDTH_LAST if few else BATCH_LAST
        return jax.ffi.ffi_call(
            "harp_sparse_gather_planes" if few else "harp_sparse_gather",
            jax.ShapeDtypeStruct((len(images), *self.shape), jnp.float32),
            input_layouts=(layout, None, None, None),
            output_layouts=layout,
            vmap_method="sequential",
        )(
            images,
            values[self.lists.order],
            self.lists.places,
            self.lists.starts,
            **self.move.attributes(),
        )


def _dot(images: Array, gradient: Array, forward: _Gather) -> Array:
    """Computes the gradient of the values, in the order of the forward lists."""
    lists = forward.lists
    return jax.ffi.ffi_call(
        "harp_sparse_dot",
        jax.ShapeDtypeStruct((len(lists.order),), jnp.float32),
        input_layouts=(BATCH_LAST, BATCH_LAST, None, None),
        vmap_method="sequential",
    )(images, gradient, lists.places, lists.starts, **forward.move.attributes())


def _differentiable(forward: _Gather, backward: _Gather) -> Any:
    @jax.custom_vjp
    def run(images: Array, values: Array) -> Array:
        return forward(images, values)

    def run_forward(images: Array, values: Array) -> Any:
        return forward(images, values), (images, values)

    def run_backward(residuals: Any, gradient: Array) -> tuple[Array, Array]:
        images, values = residuals
        return backward(gradient, values), _dot(images, gradient, forward)

    run.defvjp(run_forward, run_backward)
    return run
