"""Reading the published files of CIFAR-10 and CIFAR-100: the binary and the Python version.

Reference: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8

from harp_jax.data import pickles
from harp_jax.data.checks import count_classes, whole_labels
from harp_jax.data.splits import DataError, Source, Split, read_bytes

_PIXELS = 3 * 32 * 32  # bytes of an image: the red, the green and the blue plane
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

# Pixels [N, 3072] and labels [N] of one file.
_Records = tuple[UInt8[np.ndarray, "n 3072"], Shaped[np.ndarray, " n"]]


@dataclass(frozen=True)
class _Version:
    """One published version.

    Attributes:
        train: Names of the train files.
        test: Name of the test file.
        num_classes: Number of classes.
        labels: Label bytes of a record, of which the last counts; or the key of the labels.
        read: Reads one file, given `labels`.
    """

    train: tuple[str, ...]
    test: str
    num_classes: int
    labels: int | bytes
    read: Callable[[epath.Path, int | bytes], _Records]


def read_cifar(folder: str) -> Source:
    """Reads train and test of CIFAR-10 or CIFAR-100 from the files as they are published.

    The pickles of the Python version are read by `harp_jax.data.pickles`, which runs no code.

    Args:
        folder: Folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or
            `train.bin` and `test.bin` (CIFAR-100, fine labels), or the files of the Python version,
            which have the same names without `.bin`.

    Returns:
        Both splits of 32x32x3 images in 10 or 100 classes.

    Raises:
        DataError: If a file is missing, damaged or of another form; names it.
    """
    root = epath.Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"no folder {folder!r}; expected one with {_expected()}")
    for version in _VERSIONS:
        if (root / version.train[0]).is_file():
            break
    else:
        raise DataError(f"{root} has none of {_expected()}")
    parts = [_read_file(root / name, version) for name in version.train]
    for name, part in zip(version.train, parts, strict=True):
        if len(part) != len(parts[0]):
            raise DataError(
                f"{root / name} has {len(part)} images and {version.train[0]} {len(parts[0])}; "
                "the counts must be equal"
            )
    train = Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    test = _read_file(root / version.test, version)
    num_classes = count_classes(train.labels, test.labels, declared=version.num_classes)
    return Source(num_classes, train=train, test=test)


def _expected() -> str:
    return " or ".join(f"{version.train[0]}, ..., {version.test}" for version in _VERSIONS)


def _read_file(path: epath.Path, version: _Version) -> Split:
    if not path.is_file():
        needed = ", ".join((*version.train, version.test))
        raise DataError(f"no file {path.name} in {path.parent}; needed are {needed}")
    pixels, labels = version.read(path, version.labels)
    found = whole_labels(labels, f"{path}: labels")
    if found.min() < 0 or found.max() >= version.num_classes:
        raise DataError(
            f"{path} has labels from {found.min()} to {found.max()}; allowed are 0 to "
            f"{version.num_classes - 1}"
        )
    planes = pixels.reshape(-1, 3, 32, 32)
    return Split(np.ascontiguousarray(np.moveaxis(planes, 1, 3)), found)


def _read_binary(path: epath.Path, labels: int | bytes) -> _Records:
    assert isinstance(labels, int)
    data = np.frombuffer(read_bytes(path), np.uint8)
    size = labels + _PIXELS
    if len(data) == 0 or len(data) % size:
        raise DataError(
            f"{path} has {len(data)} bytes, which is not a multiple of {size}, the bytes of a "
            "label and an image: it is cut short, or another file"
        )
    records = data.reshape(-1, size)
    return records[:, labels:], records[:, labels - 1]


def _read_pickled(path: epath.Path, labels: int | bytes) -> _Records:
    try:
        found = pickles.load(read_bytes(path))
        if not isinstance(found, dict) or not {b"data", labels} <= found.keys():
            raise ValueError(f"no dict with {b'data'!r} and {labels!r}")
        pixels = pickles.as_bytes(found[b"data"])
        numbers = np.ravel(found[labels])
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a batch of CIFAR ({error})") from error
    if pixels.shape != (numbers.size, _PIXELS) or numbers.size == 0:
        raise DataError(
            f"{path} has pixels of the shape {pixels.shape} and {numbers.size} labels; allowed are "
            f"(images, {_PIXELS}) and as many labels"
        )
    return pixels, numbers


_VERSIONS = (
    _Version(tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", 10, 1, _read_binary),
    _Version(("train.bin",), "test.bin", 100, 2, _read_binary),
    _Version(_BATCHES, "test_batch", 10, b"labels", _read_pickled),
    _Version(("train",), "test", 100, b"fine_labels", _read_pickled),
)
