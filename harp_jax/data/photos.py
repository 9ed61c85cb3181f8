"""Encoded photos of any source with random access, and decoding all of them into memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from harp_jax.data.images import UNREADABLE, decode, why
from harp_jax.data.splits import DataError, Split

_READ_TOGETHER = 64
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Photos:
    """The encoded photos of a published split.

    Attributes:
        split: Name of the split, for error messages.
        source: Random access to the examples by `source.__getitems__(places)`; images are bytes.
        image_key: Key of an example's image.
        label_key: Key of an example's class label.
        num_classes: Number of classes.
        version: What tells the photos from others: name and version of the set, or a digest. The
            split's digest uses it in place of the pixels.
        names: Name of the example at an index, for error messages; None: split and index.
    """

    split: str
    source: Any
    image_key: str
    label_key: str
    num_classes: int
    version: str = ""
    names: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, places: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded image and class label (unchecked) of each example at some indices."""
        examples = self.source.__getitems__(places)
        return [(example[self.image_key], int(example[self.label_key])) for example in examples]

    def name(self, place: int) -> str:
        """Returns the name of the example at an index, for error messages."""
        if self.names is not None:
            return self.names(place)
        return f"split {self.split!r}, example {place}"


def decode_all(train: Photos, test: Photos, *, grey: bool) -> tuple[Split, Split]:
    """Decodes two splits of images of one size into memory.

    Args:
        train: Encoded images of the train split.
        test: Encoded images of the test split.
        grey: Whether to decode to one channel instead of three.

    Returns:
        Both splits.

    Raises:
        DataError: If an image cannot be decoded or is of another size than the first one; names it.
    """
    mode = "L" if grey else "RGB"
    first = _named(train, 0, train.read([0])[0][0], mode)
    size, name = first.shape[:2], train.name(0)
    return _decode(train, mode, size, name), _decode(test, mode, size, name)


def _decode(photos: Photos, mode: str, size: Size, first: str) -> Split:
    images = np.empty((len(photos), *size, 1 if mode == "L" else 3), np.uint8)
    labels = np.empty(len(photos), np.int32)
    # `disable=None`: no bar where the output is not a terminal.
    label = f"decode {photos.split}"
    with tqdm(total=len(photos), desc=label, unit="image", disable=None) as bar:
        for start in range(0, len(photos), _READ_TOGETHER):
            places = range(start, min(start + _READ_TOGETHER, len(photos)))
            for place, (encoded, labels[place]) in zip(places, photos.read(places), strict=True):
                found = _named(photos, place, encoded, mode)
                if found.shape[:2] != size:
                    raise _sizes_differ(photos.name(place), found.shape[:2], first, size)
                images[place] = found
            bar.update(len(places))
    return Split(images, labels)


def _named(
    photos: Photos, place: int, encoded: bytes, mode: str
) -> UInt8[np.ndarray, "height width channels"]:
    try:
        return decode(encoded, mode)
    except UNREADABLE as error:
        raise DataError(f"{photos.name(place)} cannot be decoded ({why(error)})") from error


def _sizes_differ(one: str, size: Size, other: str, first: Size) -> DataError:
    return DataError(
        f"{one} is {size[0]}x{size[1]} and {other} {first[0]}x{first[1]} (height x width); allowed "
        "is one size, or any sizes with data.image_size, which crops them to squares"
    )
