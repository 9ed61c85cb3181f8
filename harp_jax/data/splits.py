"""Data sets and their splits, and cutting train, validation and test from a published source."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, Shaped, UInt8

from harp_jax.names import printable

# Training uses the stream of an epoch's number, counted from 0, and never reaches this one.
_VALIDATION_STREAM = 2**64 - 1

# Images, uint8, and labels, int32, with the same leading axes.
Examples = tuple[UInt8[np.ndarray, "..."], Int32[np.ndarray, "..."]]


class DataError(ValueError):
    """Raised if a data set, or a batch of it, cannot be made; the message is one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Split:
    """Stored images and their class labels, in memory.

    Attributes:
        images: Pixels 0..255, uint8 [N, H, W, C].
        labels: Class labels, int32 [N], in [0, num_classes).
    """

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int32[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def digest(self) -> str:
        """Returns the SHA-256 of images and labels, in hexadecimal."""
        found = hashlib.sha256(f"{self.images.shape} {self.labels.dtype}".encode())
        for array in (self.images, self.labels):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def take(self, places: Int32[np.ndarray, " chosen"] | slice) -> "Split":
        """Returns the examples at the indices `places`, in that order."""
        return Split(self.images[places], self.labels[places])

    def stream(
        self, table: Int32[np.ndarray, "steps devices per_device"], *, seed: int, epoch: int
    ) -> Generator[Examples, None, None]:
        """Yields stored images and labels for training, one row of the table at a time.

        Args:
            table: Indices into this split, one row per step.
            seed: Seed of the run, in [0, 2**64); subclasses draw random crops from it.
            epoch: Number of the epoch, counted from 0.

        Returns:
            Images, uint8 [devices, per_device, H, W, C], and labels of each step. A caller that
            stops early must close the generator.
        """
        del seed, epoch
        return ((self.images[places], self.labels[places]) for places in table)


@dataclass(frozen=True)
class Source:
    """A published data set: train and test, no validation split yet.

    Attributes:
        num_classes: Number of classes.
        train: Published train split.
        test: Published test split.
        version: Published version, such as 'cifar10:3.0.2'; None where there is none.
    """

    num_classes: int
    train: Split
    test: Split
    version: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set that is ready for a run.

    Attributes:
        name: Name, as `load` takes it.
        num_classes: Number of classes.
        train: Examples to train on; never empty.
        validation: Examples to choose epochs on; may be empty.
        test: Examples for the final evaluation; never empty.
        version: Published version, such as 'cifar10:3.0.2'; None where there is none.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    version: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.image_shape

    def identity(self) -> dict[str, Any]:
        """Returns 'name', 'version' and the splits' 'digests', which tell data sets apart."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        digests = {name: split.digest() for name, split in splits.items()}
        return {"name": self.name, "version": self.version, "digests": digests}


def permutation(count: int, *, seed: int, stream: int) -> Int32[np.ndarray, " count"]:
    """Returns a random order of `range(count)` that depends only on (seed, stream).

    Args:
        count: Number of indices to order.
        seed: Seed of the run, in [0, 2**64).
        stream: Number of one of the seed's independent orders, in [0, 2**64).

    Returns:
        The order, int32 [count].

    Raises:
        DataError: If seed or stream is out of range.
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
    """Cuts a seeded validation split from train and limits the size of train and test.

    Args:
        name: Name of the data set.
        source: Published splits.
        seed: Seed of the order in which the published train split is cut, in [0, 2**64).
        validation_examples: Size of the validation split; 0 leaves it empty.
        train_examples: Size of the train split; None means all remaining examples.
        test_examples: Size of the test split, taken from its start; None means all of it.

    Returns:
        The data set; its train and validation splits are disjoint.

    Raises:
        DataError: If the source has too few examples.
    """
    published = len(source.train)
    # At least one example must remain to train on.
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
    """Cuts a stratified test split from a set that is published as a single split.

    Args:
        split: The published examples.
        per_class: Number of test examples of each class.
        seed: Seed of their choice, in [0, 2**64).

    Returns:
        The chosen examples as test, round-robin over the classes, so that its first n examples are
        as balanced as possible for every n. The others, in the order of `split`, as train.
    """
    order = permutation(len(split), seed=seed, stream=0)
    rank = np.empty(len(split), np.int32)  # position among the examples of the same class
    for label in range(len(per_class)):
        members = order[split.labels[order] == label]
        rank[members] = np.arange(len(members))
    held_out = rank < per_class[split.labels]
    places = np.flatnonzero(held_out).astype(np.int32)
    round_robin = places[np.lexsort((split.labels[places], rank[places]))]
    kept = np.flatnonzero(~held_out).astype(np.int32)
    return Source(len(per_class), train=split.take(kept), test=split.take(round_robin))


def padded(split: Split, size: int) -> Split:
    """Pads the images with zeros to size x size, evenly on opposite sides (up to one pixel).

    Raises:
        DataError: If the images are larger than that.
    """
    height, width = split.images.shape[1:3]
    if max(height, width) > size:
        raise DataError(
            f"data.pad_to={size}: must be at least {max(height, width)}, the size of the images"
        )
    sides = [((size - length) // 2, -((length - size) // 2)) for length in (height, width)]
    return Split(np.pad(split.images, ((0, 0), *sides, (0, 0))), split.labels)


def read_bytes(path: epath.Path) -> bytes:
    """Reads a file; raises a DataError in one line if this user cannot."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def as_split(
    images: UInt8[np.ndarray, "examples ..."], labels: Shaped[np.ndarray, " examples"]
) -> Split:
    """Makes a split of images with or without a channel axis and labels of any integer type."""
    if images.ndim == 3:
        images = images[..., None]
    return Split(images, labels.astype(np.int32))


def _check_size(field: str, value: int, least: int, most: int, name: str) -> None:
    if not least <= value <= most:
        raise DataError(f"{field}={value}: allowed are {least} to {most} for data.name={name!r}")
