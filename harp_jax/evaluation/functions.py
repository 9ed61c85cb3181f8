"""Turns the arrays that a function has captured into an argument.

A network that is a Python function has captured its weights. Compiled directly, every program would
hold a copy of them as constants, which costs compile time and memory. Tracing finds the captured
arrays; they become an argument, like the variables of a linen module.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from harp_jax.types import Images, Logits, LogitsFn

# (weights, images in [0, 1]) -> logits; the weights are any tree of arrays.
Network = Callable[[Any, Images], Logits]

_SEVERAL = 3  # images with which a function is tried beside a single one
_ALLOWED = (
    "JAX functions from images [n, height, width, channels] to floating-point logits [n, classes]"
    " of 2 classes or more"
)


class Opened(NamedTuple):
    """A function whose captured floating-point arrays are an argument.

    Attributes:
        network: (weights, images) -> logits.
        weights: The captured arrays, by their number as text.
        classes: Number of logits.
        digest: Digest of the computation without the values of the weights.
    """

    network: Network
    weights: dict[str, Any]
    classes: int
    digest: str


def open_up(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> Opened:
    """Takes the captured arrays out of a function.

    Integer arrays and arrays that an inner compiled function has captured stay constants.

    Args:
        logits_fn: Images [n, height, width, channels] in [0, 1] -> logits [n, classes], for any n.
        image_shape: (height, width, channels).

    Returns:
        The function of weights and images, and the weights.

    Raises:
        ValueError: If JAX cannot trace the function, or its outputs are not logits; in one line.
    """
    plain = _plain(logits_fn)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    traced = _traced(plain, image)
    _traced(plain, jax.ShapeDtypeStruct((_SEVERAL, *image_shape), jnp.float32))
    captured = [array for array in traced.consts if jnp.issubdtype(array.dtype, jnp.inexact)]
    weights = {str(number): array for number, array in enumerate(captured)}

    def network(weights: dict[str, Any], images: Images) -> Logits:
        closed = jax.make_jaxpr(plain)(jax.ShapeDtypeStruct(images.shape, images.dtype))
        places = [_place(array, captured) for array in closed.consts]
        arrays = [
            array if place is None else weights[str(place)]
            for array, place in zip(closed.consts, places, strict=True)
        ]
        return core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, arrays))(images)[0]

    program = jax.jit(network).lower(weights, image).as_text()
    digest = hashlib.sha256(program.encode()).hexdigest()
    return Opened(network, weights, traced.out_avals[0].shape[1], digest)


def _plain(logits_fn: LogitsFn) -> LogitsFn:
    """Returns the function inside one that `jax.jit` made, which would hide its constants."""
    compiled: Any = logits_fn
    return compiled.__wrapped__ if isinstance(logits_fn, jax.stages.Wrapped) else logits_fn


def _traced(logits_fn: LogitsFn, image: jax.ShapeDtypeStruct) -> core.ClosedJaxpr:
    """Traces the function for some images and checks that its outputs are logits."""
    try:
        traced = jax.make_jaxpr(logits_fn)(image)
    except Exception as error:  # whatever a user's function raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"logits_fn: fails for images {image.shape} ({reason}); allowed are {_ALLOWED}"
        ) from error
    shapes = [out.shape for out in traced.out_avals]
    fits = [len(shape) == 2 and shape[0] == image.shape[0] and shape[1] >= 2 for shape in shapes]
    floating = [jnp.issubdtype(out.dtype, jnp.floating) for out in traced.out_avals]
    if fits != [True] or floating != [True]:
        outputs = ", ".join(str(out) for out in traced.out_avals)
        raise ValueError(
            f"logits_fn: gives {outputs} for images {image.shape}; allowed are {_ALLOWED}"
        )
    return traced


def _place(array: Any, captured: list[Any]) -> int | None:
    """Finds the place of an array among the captured ones, by identity or by equal values."""
    for place, other in enumerate(captured):
        if array is other:
            return place
    for place, other in enumerate(captured):
        same_kind = (array.shape, array.dtype) == (other.shape, other.dtype)
        if same_kind and np.array_equal(np.asarray(array), np.asarray(other)):
            return place
    return None
