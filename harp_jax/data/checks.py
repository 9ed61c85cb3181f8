"""Checks of images and labels that users bring; errors are one line and name the file."""

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from harp_jax.data.splits import DataError

_CHECKED_TOGETHER = 1024
_PIXELS = "allowed are integer types with 0 to 255, or floats that are such numbers / 255"
_MOST_CHANNELS = 4
_TOLERANCE = 0.1  # of a pixel's step: float16 numbers near 1 are further apart than float32's


def pixels(images: Shaped[np.ndarray, "..."], where: str) -> UInt8[np.ndarray, "n h w c"]:
    """Checks an array of images and returns it as bytes.

    Args:
        images: Images [N, H, W] or [N, H, W, C] of up to 4 channels: integers from 0 to 255, or
            floats in [0, 1] that are such numbers divided by 255. Other floats would lose
            digits.
        where: File and name of the array, for errors.

    Returns:
        The same images, uint8 [N, H, W, C].

    Raises:
        DataError: If shape, type or range are others.
    """
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape or (images.ndim == 4 and shape[3] > _MOST_CHANNELS):
        empty = ", so no pixel" if 0 in shape else ""
        raise DataError(
            f"{where} has the shape {shape}{empty}; allowed are [images, height, width] and "
            f"[images, height, width, channels] with up to {_MOST_CHANNELS} channels"
        )
    if images.dtype.kind not in "fiu":
        raise DataError(f"{where} is of type {images.dtype}; {_PIXELS}")
    if images.dtype.kind == "f":
        images = _from_unit(images, where)
    low, high = int(images.min()), int(images.max())
    if low < 0 or high > 255:
        raise DataError(f"{where} has pixels from {low} to {high}; {_PIXELS}")
    if high <= 1:  # more likely 0 and 1 for black and white than an almost black set
        raise DataError(f"{where} has no pixel above {high}; {_PIXELS}, white as 255")
    return np.ascontiguousarray(images if images.ndim == 4 else images[..., None], np.uint8)


def _from_unit(images: Shaped[np.ndarray, "..."], where: str) -> UInt8[np.ndarray, "..."]:
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CHECKED_TOGETHER):
        part = slice(start, start + _CHECKED_TOGETHER)
        exact = images[part].astype(np.float64) * 255
        rounded = np.rint(exact)
        near = np.abs(exact - rounded) <= _TOLERANCE  # False for nan
        wrong = ~(near & (rounded >= 0) & (rounded <= 255))
        if wrong.any():
            value = images[part][wrong][0]
            raise DataError(f"{where} has the {images.dtype} pixel {value:g}; {_PIXELS}")
        found[part] = rounded
    return found


def whole_labels(labels: Shaped[np.ndarray, "..."], where: str) -> Int32[np.ndarray, " n"]:
    """Checks the form of labels, not yet their range.

    Args:
        labels: Whole numbers of any integer type, [N] or [N, 1].
        where: File and name of the array, for errors.

    Returns:
        The labels, int32 [N].

    Raises:
        DataError: If shape or type are others, or a number is too large for a class.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) == 0:
        raise DataError(f"{where} has the shape {labels.shape}; allowed is one label an image, [n]")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where} is of type {labels.dtype}; allowed are whole numbers")
    largest = max(int(labels.max()), -int(labels.min()))
    if largest > np.iinfo(np.int32).max:
        raise DataError(f"{where} has the label {largest}; allowed are 0 to classes - 1")
    return labels.astype(np.int32)


def same_count(images: int, labels: int, where: str, other: str) -> None:
    """Raises a DataError if there are not as many labels as images."""
    if images != labels:
        raise DataError(
            f"{where} has {images} images and {other} {labels} labels; the counts must be equal"
        )


def count_classes(
    train: Int32[np.ndarray, " n"], test: Int32[np.ndarray, " m"], *, declared: int | None = None
) -> int:
    """Counts the classes of a set and checks that each has images to train on.

    Args:
        train: Labels of the train split.
        test: Labels of the test split.
        declared: Number of classes that the format or the files promise; None if they do not.

    Returns:
        Number of classes, at least 2.

    Raises:
        DataError: If the train labels are not all of 0 to classes - 1, or if the test split has a
            class that the train split lacks.
    """
    low, high = int(train.min()), int(train.max())
    count = high + 1 if declared is None else declared
    each = f"allowed are 0 to {count - 1}, each at least once"
    if low != 0 or high >= count:
        if declared is None:  # those that there are, counted from 0
            each = f"allowed are 0 to {len(np.unique(train)) - 1}, each at least once"
        raise DataError(f"train labels go from {low} to {high}; {each}")
    if count < 2:
        raise DataError(f"train has {count} class; allowed are at least 2")
    present = np.unique(train)
    if len(present) < count:
        missing = int(np.setdiff1d(np.arange(len(present) + 1), present)[0])
        raise DataError(f"train has no image of class {missing}; {each}")
    foreign = test[(test < 0) | (test >= count)]
    if len(foreign):
        raise DataError(
            f"test has the label {foreign[0]}, which train lacks; allowed are 0 to {count - 1}"
        )
    return count
