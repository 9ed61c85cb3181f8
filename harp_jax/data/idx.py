"""Reading a folder of four IDX files, the format of MNIST and of sets modelled on it.

Reference: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import zlib

import numpy as np
from etils import epath
from jaxtyping import UInt8

from harp_jax.data.checks import count_classes
from harp_jax.data.splits import DataError, Source, Split, as_split, read_bytes

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UBYTE = 0x08  # the type code, third byte of the magic number; the fourth is the rank


def read_idx(folder: str) -> Source:
    """Reads train and test from the four IDX files of a folder.

    Args:
        folder: Folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each plain or gzipped (.gz).

    Returns:
        Both splits; the number of classes is the largest label plus one.

    Raises:
        DataError: If a file is missing or damaged, if two files disagree, or if train does not
            have images of all classes.
    """
    root = epath.Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"no folder {folder!r}; expected one with {_expected()}")
    train = _read_split(root, *_FILES[:2])
    test = _read_split(root, *_FILES[2:])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"train images are {train.images.shape[1:3]} and test images "
            f"{test.images.shape[1:3]}; all must be of one size"
        )
    return Source(count_classes(train.labels, test.labels), train=train, test=test)


def _expected() -> str:
    return f"{', '.join(_FILES)} (each plain or .gz)"


def _read_split(root: epath.Path, images_name: str, labels_name: str) -> Split:
    images = _read_array(_find(root, images_name), rank=3)
    labels = _read_array(_find(root, labels_name), rank=1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_name} has {len(images)} images and {labels_name} {len(labels)} labels; "
            "the counts must be equal"
        )
    return as_split(images, labels)


def _find(root: epath.Path, name: str) -> epath.Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"no file {name} in {root}; expected {_expected()}")


def _read_array(path: epath.Path, *, rank: int) -> UInt8[np.ndarray, "..."]:
    data = read_bytes(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is a truncated or corrupt gzip file ({error})") from error
    header_size = 4 + 4 * rank
    if len(data) < header_size:
        raise DataError(f"{path} has {len(data)} bytes; its header alone takes {header_size}")
    magic, *shape = (int(field) for field in np.frombuffer(data, ">u4", count=1 + rank))
    if magic != _UBYTE << 8 | rank:
        raise DataError(
            f"{path} has the magic number {magic:#010x}; expected {_UBYTE << 8 | rank:#010x}"
        )
    if 0 in shape:
        raise DataError(f"{path} is of shape {tuple(shape)}; every count must be at least 1")
    # As Python integers: the product of three corrupt counts overflows 64 bits.
    expected, found = 1, len(data) - header_size
    for count in shape:
        expected *= count
    if found != expected:
        raise DataError(
            f"{path} has {found} bytes after its header, which promises {expected} "
            f"(shape {tuple(shape)})"
        )
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)
