"""A function of images alone as a function of its weights too, so that programs do not hold them.

A network that is a Python function has its weights captured. Compiled as it is, every program would
hold a copy of them as constants, which takes long to compile and much memory. Tracing shows the
captured arrays; here they become an argument, as the variables of a linen module are.
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
        digest: Says what is computed, but for the values of the weights.
    """

    network: Network
    weights: dict[str, Any]
    classes: int
    digest: str


def open_up(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> Opened:
    """Takes the captured arrays out of a function.

    What an inner compiled function has captured, and whole numbers, stay where they are.

    Args:
        logits_fn: Images [n, height, width, channels] in [0, 1] -> logits [n, classes], for any n.
        image_shape: (height, width, channels).

    Returns:
        The function of weights and images, and the weights.

    Raises:
        ValueError: In one line, for a function that JAX cannot trace or with other outputs.
    """
    plain = _plain(logits_fn)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    traced = _traced(plain, image)
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
    """The function itself of what `jax.jit` made, which would keep its constants to itself."""
    compiled: Any = logits_fn
    return compiled.__wrapped__ if isinstance(logits_fn, jax.stages.Wrapped) else logits_fn


def _traced(logits_fn: LogitsFn, image: jax.ShapeDtypeStruct) -> core.ClosedJaxpr:
    """The function's program for one image, with outputs that are logits."""
    try:
        traced = jax.make_jaxpr(logits_fn)(image)
    except Exception as error:  # whatever a user's function raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"logits_fn: fails for images {image.shape} ({reason}); allowed are {_ALLOWED}"
        ) from error
    shapes = [out.shape for out in traced.out_avals]
    fits = [len(shape) == 2 and shape[0] == 1 and shape[1] >= 2 for shape in shapes]
    floating = [jnp.issubdtype(out.dtype, jnp.floating) for out in traced.out_avals]
    if fits != [True] or floating != [True]:
        outputs = ", ".join(str(out) for out in traced.out_avals)
        raise ValueError(
            f"logits_fn: gives {outputs} for images {image.shape}; allowed are {_ALLOWED}"
        )
    return traced


def _place(array: Any, captured: list[Any]) -> int | None:
    """Where an array is among the captured ones: itself, or one of the same values."""
    for place, other in enumerate(captured):
        if array is other:
            return place
    for place, other in enumerate(captured):
        same_kind = (array.shape, array.dtype) == (other.shape, other.dtype)
        if same_kind and np.array_equal(np.asarray(array), np.asarray(other)):
            return place
    return None
