"""Says in a line what is wrong with images that a loaded network cannot take."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from harp_jax.types import Logits, LogitsFn


def checked(logits_fn: LogitsFn, image_shape: Sequence[int]) -> LogitsFn:
    """Returns a function that refuses what are no images of the network.

    Only types and shapes are looked at, so it costs nothing once it is compiled. Another size than
    `image_shape` is taken where the network takes it.

    Args:
        logits_fn: A function from images in [0, 1] to logits; it is called while it is traced.
        image_shape: (height, width, channels) of the images that it was made for.

    Returns:
        The same function. It raises a ValueError in one line for images that are no array of
        floating-point numbers [n, height, width, channels], or whose size it does not take.
    """
    allowed = f"allowed are floating-point arrays [n, {', '.join(map(str, image_shape))}] in [0, 1]"

    def logits(images: Any) -> Logits:
        if not hasattr(images, "dtype"):
            raise ValueError(f"images: are a {type(images).__name__}; {allowed}")
        found = f"images: are {images.dtype} {[*images.shape]}; {allowed}"
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{found}; bytes are divided by 255")
        if images.ndim != 4:
            raise ValueError(found)
        try:
            return logits_fn(images)
        except Exception as error:  # networks raise anything for images of other sizes
            if tuple(images.shape[1:]) == tuple(image_shape):
                raise
            raise ValueError(found) from error

    return logits
