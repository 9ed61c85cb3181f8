"""Convolution for the `conv_general_dilated` field of `flax.linen.Conv`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from harp_jax.ops import cpu_conv
from harp_jax.ops.geometry import Padding, Pair, output_size


class _Geometry(NamedTuple):
    """Static settings of a convolution.

    Attributes:
        strides: Strides along height and width.
        padding: Zeros before and after, along height and width.
        precision: Precision for `jax.lax`.
        plain: Whether the highest precision was asked for; only CPUs read it.
    """

    strides: Pair
    padding: Padding
    precision: Any
    plain: bool


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """Computes `jax.lax.conv_general_dilated`, with an implementation of its own on CPUs.

    The compiled program chooses by platform. The implementation for CPUs covers two-dimensional
    float32 convolutions (NHWC images, HWIO filters, no dilation, no groups) of known sizes. All
    other calls (one with a symbolic batch size too), and all other platforms, use
    `jax.lax.conv_general_dilated`. Values and gradients agree up to
    float32 rounding: errors are below 1e-5 of the largest value, and about 1e-6 with the highest
    precision. Convolutions that it covers can only be differentiated once, and only in reverse
    mode (`jax.grad`, `jax.vjp`), on every platform.

    Args:
        lhs: Images, for example [N, H, W, C].
        rhs: Filters, for example [H, W, C_in, C_out].
        window_strides: Strides, one per spatial axis.
        padding: 'SAME', 'SAME_LOWER', 'VALID', or (low, high), one per spatial axis.
        lhs_dilation: Dilation of the images, one per spatial axis; None means 1.
        rhs_dilation: Dilation of the filters, one per spatial axis; None means 1.
        dimension_numbers: Layout, as in `jax.lax`.
        feature_group_count: Number of groups of channels.
        batch_group_count: Number of groups of examples.
        precision: As in `jax.lax`. CPUs always compute in float32; the highest precision, here or
            as JAX's default, turns off Winograd's form, which has larger rounding errors.
        preferred_element_type: As in `jax.lax`.
        out_sharding: As in `jax.lax`.

    Returns:
        The convolution, in the output layout of `dimension_numbers`.
    """
    if (
        (lhs.ndim, rhs.ndim) == (4, 4)
        and all(isinstance(size, int) for size in lhs.shape)
        and (lhs.dtype, rhs.dtype) == ("float32", "float32")
        and preferred_element_type in (None, "float32")
        and {*(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count} <= {1}
        and batch_group_count == 1
        and out_sharding is None
        and _is_canonical(lhs, rhs, dimension_numbers)
    ):
        geometry = _geometry(lhs, rhs, window_strides, padding, precision)
        if geometry is not None:
            return _conv(lhs, rhs, geometry)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def _is_canonical(lhs: Array, rhs: Array, dimension_numbers: Any) -> bool:
    """Returns whether the layout is NHWC, HWIO, NHWC."""
    layouts = [
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
        for numbers in (dimension_numbers, cpu_conv.LAYOUT)
    ]
    return layouts[0] == layouts[1]


def _geometry(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    precision: lax.PrecisionLike,
) -> _Geometry | None:
    """Returns the static settings of a call, or None if the call is degenerate or invalid.

    `jax.lax` then computes the result or raises the error.
    """
    size, kernel = lhs.shape[1:3], rhs.shape[:2]
    if len(window_strides) != 2 or lhs.shape[3] != rhs.shape[2] or 0 in lhs.shape + rhs.shape:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, window_strides, padding)
    if len(padding) != 2 or min(window_strides) < 1:
        return None
    (top, bottom), (left, right) = padding
    strides = (int(window_strides[0]), int(window_strides[1]))
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    outputs = map(output_size, size, kernel, strides, pads)
    if min(top, bottom, left, right) < 0 or min(outputs) < 1:
        return None
    return _Geometry(strides, pads, precision, _is_highest(precision))


def _is_highest(precision: lax.PrecisionLike) -> bool:
    """Returns whether an operand's precision (JAX's default if None) is the highest."""
    config: Any = jax.config  # its fields are made at run time
    default = config.jax_default_matmul_precision
    asked = precision if isinstance(precision, tuple) else (precision,)
    names = [default if p is None else p for p in asked]
    return any(name in (lax.Precision.HIGHEST, "highest", "float32") for name in names)


def _native(x: Array, w: Array, geometry: _Geometry) -> Array:
    strides, padding, precision, _ = geometry
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=cpu_conv.LAYOUT, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, w: Array, geometry: _Geometry) -> Array:
    """Computes the convolution; the platform is chosen when the program is lowered."""
    strides, padding, _, plain = geometry
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: cpu_conv.forward(x, w, strides, padding, plain=plain),
        default=lambda x, w: _native(x, w, geometry),
    )


def _conv_forward(x: Array, w: Array, geometry: _Geometry) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, geometry), (x, w)


def _conv_backward(
    geometry: _Geometry, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, w = residuals
    (_, height, width, _), (kh, kw, _, _) = x.shape, w.shape
    strides, padding, _, plain = geometry
    # Two separate choices of platform, so that the compiler can drop the second gradient where only
    # the first is needed, as in an attack.
    input_gradient = lax.platform_dependent(
        g,
        w,
        cpu=lambda g, w: cpu_conv.input_gradient(
            g, w, (height, width), strides, padding, plain=plain
        ),
        default=lambda g, w: jax.linear_transpose(lambda x: _native(x, w, geometry), x)(g)[0],
    )
    kernel_gradient = lax.platform_dependent(
        x,
        g,
        cpu=lambda x, g: cpu_conv.kernel_gradient(x, g, (kh, kw), strides, padding, plain=plain),
        default=lambda x, g: jax.linear_transpose(lambda w: _native(x, w, geometry), w)(g)[0],
    )
    return input_gradient, kernel_gradient


_conv.defvjp(_conv_forward, _conv_backward)
