"""Convolution for the `conv_general_dilated` field of `flax.linen.Conv`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from harp_jax.ops import cpu_conv


class _Geometry(NamedTuple):
    """What is static about a convolution."""

    strides: cpu_conv.Pair
    padding: cpu_conv.Padding
    precision: Any
    plain: bool  # on CPUs, whether the highest precision was asked for


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
    """`jax.lax.conv_general_dilated`, with another implementation where it runs on a CPU.

    The platform is chosen inside the compiled program. The other implementation serves plain
    two-dimensional float32 convolutions (NHWC images, HWIO filters, no dilation, no groups);
    everything else, and every other platform, gets `jax.lax.conv_general_dilated` itself. Values
    and gradients agree up to float32 rounding: errors are below 1e-5 of the largest value, and of
    the order of 1e-6 with the highest precision. Where it serves, on any platform, only
    reverse-mode differentiation works (`jax.grad`, `jax.vjp`), and only once.

    Args:
        lhs: images.
        rhs: filters.
        window_strides: step of the output, per spatial axis.
        padding: 'SAME', 'SAME_LOWER', 'VALID', or (low, high) per spatial axis.
        lhs_dilation: dilation of the images, per spatial axis.
        rhs_dilation: dilation of the filters, per spatial axis.
        dimension_numbers: layout, as `jax.lax.conv_dimension_numbers` takes or returns it.
        feature_group_count: number of groups of channels.
        batch_group_count: number of groups of examples.
        precision: as in `jax.lax`. CPUs compute in float32 whatever it says; the highest, here or
            as JAX's default, rules out the form with fewer multiplications that rounds more.
        preferred_element_type: as in `jax.lax`.
        out_sharding: as in `jax.lax`.

    Returns:
        The convolution, in the layout `dimension_numbers` asks for.
    """
    if (
        (lhs.ndim, rhs.ndim) == (4, 4)
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
    """Whether the layout is NHWC, HWIO, NHWC."""
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
    """The static part of the call, or None where it is degenerate or has mistakes.

    Those calls go to `lax`, which knows their results and has the error messages.
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
    outputs = map(cpu_conv.output_size, size, kernel, strides, pads)
    if min(top, bottom, left, right) < 0 or min(outputs) < 1:
        return None
    return _Geometry(strides, pads, precision, _is_highest(precision))


def _is_highest(precision: lax.PrecisionLike) -> bool:
    """Whether an operand's precision, or JAX's default where none is given, is the highest."""
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
    """The convolution, with the platform chosen when the program is lowered."""
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
    # Two choices, not one: an attack needs only the first gradient, and the compiler drops the
    # second.
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
