"""Steps of a network that no rule makes smaller: run as they are, for any number of images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TRACED = (2, 3)  # images of the two programs that are compared


class Images(NamedTuple):
    """A size that depends on the number of images.

    Attributes:
        times: The size for one image.
    """

    times: int


class Step(NamedTuple):
    """A JAX primitive that may read and write units in any way.

    Attributes:
        primitive: The primitive.
        settings: Its parameters, as (name, value); sizes may be `Images`.
        operands: For each of its operands the array that it always is, None for the value of a
            node, or the form of an array of the network.
        repeated: Places of operands that hold one image's part, the same for all images.
        output: Which of its results it gives.
    """

    primitive: Any
    settings: tuple[tuple[str, Any], ...]
    operands: tuple[Any, ...]
    repeated: frozenset[int]
    output: int

    def __call__(self, images: int, arrays: Any, *features: jax.Array) -> jax.Array:
        """Applies the primitive.

        Args:
            images: Number of images.
            arrays: Arrays of the node, by `operand_name`.
            *features: Values of the input nodes.
        """
        rest, values = iter(features), []
        for place, operand in enumerate(self.operands):
            value = operand
            if operand is None:
                value = next(rest)
            elif isinstance(operand, jax.ShapeDtypeStruct):
                value = arrays[operand_name(place)]
            if place in self.repeated:
                value = jnp.broadcast_to(value, (images, *value.shape[1:]))
            values.append(value)
        settings = {name: _with_images(value, images) for name, value in self.settings}
        results = self.primitive.bind(*values, **settings)
        return results[self.output] if self.primitive.multiple_results else results


def operand_name(place: int) -> str:
    """Returns the name of the network's array that is an operand of a step."""
    return f"operand{place}"


def step(pair: Sequence[Any], inputs: Sequence[Any], is_node: Sequence[bool], output: int) -> Any:
    """Makes the step of an equation, and its arrays.

    Args:
        pair: The equation in the programs for 2 and for 3 images.
        inputs: Values of the operands, for 2 images.
        is_node: Which of them are nodes.
        output: Which of the results is wanted.

    Returns:
        A `Step` and its arrays of floats by name; None if the equation does not tell how it depends
        on the number of images.
    """
    two, three = pair
    if two.primitive is not three.primitive or any(
        each.outvars[output].aval.shape[:1] != (size,)
        for each, size in zip(pair, TRACED, strict=True)
    ):
        return None
    arrays, operands, repeated = {}, [], set()
    for place, (value, node) in enumerate(zip(inputs, is_node, strict=True)):
        shapes = [each.invars[place].aval.shape for each in pair]
        operand = None if node else np.asarray(value)
        if operand is not None and shapes[0] != shapes[1]:
            if (operand != operand[:1]).any() or shapes[0][1:] != shapes[1][1:]:
                return None
            repeated.add(place)
            operand = operand[:1]
        if operand is not None and operand.dtype == np.float32 and operand.ndim:
            arrays[operand_name(place)] = operand
            operand = jax.ShapeDtypeStruct(operand.shape, operand.dtype)
        operands.append(operand)
    try:
        settings = tuple(
            (name, _compared(value, three.params[name])) for name, value in two.params.items()
        )
    except (KeyError, ValueError):
        return None
    return Step(two.primitive, settings, tuple(operands), frozenset(repeated), output), arrays


def _compared(two: Any, three: Any) -> Any:
    """Returns a parameter with `Images` where it differs between 2 and 3 images."""
    if isinstance(two, tuple) and isinstance(three, tuple):
        parts = [_compared(*both) for both in zip(two, three, strict=True)]
        return type(two)(*parts) if hasattr(two, "_fields") else tuple(parts)
    if type(two) is int and two != three:
        times = three - two
        if (two, three) != (TRACED[0] * times, TRACED[1] * times):
            raise ValueError(f"{two} for {TRACED[0]} images, {three} for {TRACED[1]}")
        return Images(times)
    return two


def _with_images(value: Any, images: int) -> Any:
    if isinstance(value, Images):
        return value.times * images
    if isinstance(value, tuple):
        parts = [_with_images(each, images) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
