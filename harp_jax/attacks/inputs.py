"""Checks of what an attack is called with.

Types and shapes are checked where the attack is traced, values where they are known: not inside a
compiled function. The checks leave nothing in compiled programs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core


def check_inputs(logits_fn: Any, images: Any, labels: Any, key: Any = None) -> None:
    """Checks the arguments of an attack's call, in its first line.

    Args:
        logits_fn: Images [n, height, width, channels] -> floating-point logits [n, classes] of 2
            classes or more.
        images: [n, height, width, channels], float32 (or JAX's other default type), in [0, 1].
        labels: Whole numbers [n], in [0, classes).
        key: A key of `jax.random.key`, or [n] of them; None if the attack uses none.

    Raises:
        ValueError: If one does not fit; one line that names it and what is allowed.
    """
    _check_images(images)
    count = len(images)
    if np.shape(labels) != (count,) or not hasattr(labels, "dtype"):
        found = _described(labels)
        raise ValueError(f"labels: {found}; allowed are arrays [{count}], one class an image")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: of type {labels.dtype}; allowed are whole numbers")
    if key is not None:
        _check_key(key, count)
    classes = _classes(logits_fn, images)
    if _is_known(labels):
        values = np.asarray(labels)
        least, most = values.min(), values.max()
        if not 0 <= least <= most < classes:
            raise ValueError(
                f"labels: from {least} to {most}; allowed are 0 to {classes - 1},"
                f" logits_fn gives {classes} logits"
            )


def _check_images(images: Any) -> None:
    shape, wanted = np.shape(images), jax.dtypes.canonicalize_dtype(float)
    if len(shape) != 4 or 0 in shape or not hasattr(images, "dtype"):
        raise ValueError(
            f"images: {_described(images)}; allowed are arrays [n, height, width, channels], none"
            " of them 0"
        )
    if images.dtype != wanted:
        raise ValueError(f"images: of type {images.dtype}; allowed is {wanted}, in [0, 1]")
    if _is_known(images):
        values = np.asarray(images)  # NumPy's extremes are nan if a value is
        least, most = values.min(), values.max()
        if not (least >= 0 and most <= 1):
            raise ValueError(
                f"images: from {least:.4g} to {most:.4g}; allowed are pixels in [0, 1]"
            )


def _check_key(key: Any, count: int) -> None:
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape not in ((), (count,)):
        raise ValueError(
            f"key: {_described(key)}; allowed are keys of jax.random.key, one or [{count}]"
        )


def _classes(logits_fn: Any, images: Any) -> int:
    logits: Any = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(images.shape, images.dtype))
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    fits = len(shape) == 2 and shape[0] == len(images) and shape[1] >= 2
    if not (fits and jnp.issubdtype(logits.dtype, jnp.floating)):
        raise ValueError(
            f"logits_fn: gives {_described(logits)} for images {tuple(images.shape)}; allowed are"
            " floating-point logits [n, classes] of 2 classes or more"
        )
    return logits.shape[1]


def _is_known(array: Any) -> bool:
    """Returns whether the values are here: not traced, and not on another process's devices."""
    return not isinstance(array, core.Tracer) and getattr(array, "is_fully_addressable", True)


def _described(value: Any) -> str:
    """Describes an array, or what is given instead of one."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
