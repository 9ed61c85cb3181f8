"""What a data set is, and how train, validation and test are cut from its source."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

# Epochs count from 0, so the order of no epoch is ever drawn from this stream.
_VALIDATION_STREAM = 2**64 - 1

# uint8 images and int32 labels of the same leading shape.
Examples = tuple[UInt8[np.ndarray, "..."], Int32[np.ndarray, "..."]]


class DataError(ValueError):
    """A data set, or a way to batch it, that cannot be had; the text is one line for the user."""


@dataclass(frozen=True)
class Split:
    """Images as stored (0..255) and their class numbers, in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], in [0, num_classes).
    """

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int32[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def digest(self) -> str:
        """SHA-256 of images and labels, in hexadecimal."""
        found = hashlib.sha256(f"{self.images.shape} {self.labels.dtype}".encode())
        for array in (self.images, self.labels):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def take(self, places: Int32[np.ndarray, " chosen"] | slice) -> "Split":
        """The examples at `places`, in that order."""
        return Split(self.images[places], self.labels[places])

    def stream(
        self, table: Int32[np.ndarray, "steps devices per_device"], *, seed: int, epoch: int
    ) -> Generator[Examples, None, None]:
        """Images and labels to train on, a row of places at a time; here just as stored.

        Args:
            table: places in this split, a row for each step.
            seed: of the run, in [0, 2**64), for what is drawn here.
            epoch: counts from 0.

        Returns:
            Images uint8 [devices, per_device, H, W, C] and labels for each step. Who stops before
            the end closes it.
        """
        del seed, epoch
        return ((self.images[places], self.labels[places]) for places in table)


@dataclass(frozen=True)
class Source:
    """A data set as its makers publish it: train and test, no validation split yet."""

    num_classes: int
    train: Split
    test: Split
    version: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set ready for a run; `validation` may be empty, the other splits are not."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    version: str | None = None  # as its makers number it

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.train.image_shape

    def identity(self) -> dict[str, Any]:
        """What tells these data from others: 'name', 'version', and 'digests' of the splits."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        digests = {name: split.digest() for name, split in splits.items()}
        return {"name": self.name, "version": self.version, "digests": digests}


def permutation(count: int, *, seed: int, stream: int) -> Int32[np.ndarray, " count"]:
    """A random order of `range(count)` that depends on (seed, stream) alone.

    Args:
        count: how many places to order.
        seed: of the run, in [0, 2**64).
        stream: which of the seed's independent orders, in [0, 2**64).

    Returns:
        int32 [count].

    Raises:
        DataError: seed or stream out of range.
    """
    for field, value in (("seed", seed), ("epoch", stream)):
        if not 0 <= value < 2**64:
            raise DataError(f"{field}={value}: must be in [0, 2**64)")
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.random.Generator(bits).permutation(count).astype(np.int32)


def carve(
    name: str,
    source: Source,
    *,
    seed: int,
    validation_examples: int,
    train_examples: int | None,
    test_examples: int | None,
) -> Dataset:
    """Cut a seeded validation split from train, and limit train and test.

    Args:
        name: the data set's name.
        source: the published splits.
        seed: orders the published train split before it is cut, in [0, 2**64).
        validation_examples: size of the validation split; 0 means none.
        train_examples: examples after those that train; None means all that remain.
        test_examples: examples of test, the first in stored order; None means all.

    Returns:
        The data set, its train and validation splits disjoint.

    Raises:
        DataError: a size that the source cannot fill.
    """
    published = len(source.train)
    # One example at least must remain to train on.
    _check_size("data.validation_examples", validation_examples, 0, published - 1, name)
    remaining = published - validation_examples
    if train_examples is not None:
        _check_size("data.train_examples", train_examples, 1, remaining, name)
        remaining = train_examples
    if test_examples is not None:
        _check_size("data.test_examples", test_examples, 1, len(source.test), name)
    order = permutation(published, seed=seed, stream=_VALIDATION_STREAM)
    return Dataset(
        name=name,
        num_classes=source.num_classes,
        train=source.train.take(order[validation_examples : validation_examples + remaining]),
        validation=source.train.take(order[:validation_examples]),
        test=source.test.take(slice(test_examples)),
        version=source.version,
    )


def hold_out(split: Split, per_class: Int32[np.ndarray, " classes"], *, seed: int) -> Source:
    """Make a stratified test split for a set that is published as one.

    Args:
        split: all examples.
        per_class: how many examples of each class to hold out.
        seed: which ones, in [0, 2**64).

    Returns:
        The held out examples as test, round-robin over the classes so that the first n of them
        are as balanced as n allows; the rest, in the order of `split`, as train.
    """
    order = permutation(len(split), seed=seed, stream=0)
    rank = np.empty(len(split), np.int32)  # place among the examples of the same class
    for label in range(len(per_class)):
        members = order[split.labels[order] == label]
        rank[members] = np.arange(len(members))
    held_out = rank < per_class[split.labels]
    places = np.flatnonzero(held_out).astype(np.int32)
    round_robin = places[np.lexsort((split.labels[places], rank[places]))]
    kept = np.flatnonzero(~held_out).astype(np.int32)
    return Source(len(per_class), train=split.take(kept), test=split.take(round_robin))


def padded(split: Split, size: int) -> Split:
    """The same examples with zeros around each image, as even as can be, up to size x size.

    Raises:
        DataError: images that are larger already.
    """
    height, width = split.images.shape[1:3]
    if max(height, width) > size:
        raise DataError(
            f"data.pad_to={size}: must be at least {max(height, width)}, the size of the images"
        )
    sides = [((size - length) // 2, -((length - size) // 2)) for length in (height, width)]
    return Split(np.pad(split.images, ((0, 0), *sides, (0, 0))), split.labels)


def as_split(
    images: UInt8[np.ndarray, "examples ..."], labels: Shaped[np.ndarray, " examples"]
) -> Split:
    """A split from images with or without a channel axis and labels of any integer type."""
    if images.ndim == 3:
        images = images[..., None]
    return Split(images, labels.astype(np.int32))


def _check_size(field: str, value: int, least: int, most: int, name: str) -> None:
    if not least <= value <= most:
        raise DataError(f"{field}={value}: must be in [{least}, {most}] for data.name={name!r}")
