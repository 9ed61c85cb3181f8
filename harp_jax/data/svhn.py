"""Reading the two .mat files of SVHN's cropped digits.

Reference: Y. Netzer et al., "Reading digits in natural images with unsupervised feature learning",
NIPS workshop 2011.
"""

import zlib

import numpy as np
from etils import epath

from harp_jax.data.checks import count_classes, pixels, same_count, whole_labels
from harp_jax.data.splits import DataError, Source, Split

_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"
_ZERO = 10  # the label of the digit 0
_UNREADABLE = (OSError, EOFError, KeyError, NotImplementedError, TypeError, ValueError, zlib.error)


def read_svhn(folder: str) -> Source:
    """Reads train and test from the .mat files as they are published.

    Args:
        folder: Folder with `train_32x32.mat` and `test_32x32.mat`.

    Returns:
        Both splits of 32x32x3 images in 10 classes, the digits; their label 10 becomes 0.

    Raises:
        DataError: If a file is missing, damaged or of another form; names it.
    """
    root = epath.Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"no folder {folder!r}; expected one with {_TRAIN} and {_TEST}")
    train, test = _read_split(root / _TRAIN), _read_split(root / _TEST)
    num_classes = count_classes(train.labels, test.labels, declared=10)
    return Source(num_classes, train=train, test=test)


def _read_split(path: epath.Path) -> Split:
    from scipy.io import loadmat  # slow to import, and not needed for other sets
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise DataError(f"no file {path.name} in {path.parent}; expected {_TRAIN} and {_TEST}")
    try:
        with path.open("rb") as opened:
            found = loadmat(opened, variable_names=("X", "y"))
        images, labels = np.asarray(found["X"]), np.asarray(found["y"])
    except (*_UNREADABLE, MatReadError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path} cannot be read as a .mat file with X and y ({reason})") from error
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X has the shape {images.shape}; allowed is (32, 32, 3, images)")
    digits = whole_labels(labels, f"{path}: y")
    same_count(images.shape[3], len(digits), f"{path}: X", "y")
    if digits.min() < 1 or digits.max() > _ZERO:
        raise DataError(
            f"{path}: y goes from {digits.min()} to {digits.max()}; allowed are 1 to {_ZERO}, "
            f"{_ZERO} for the digit 0"
        )
    return Split(pixels(np.moveaxis(images, 3, 0), f"{path}: X"), digits % _ZERO)
