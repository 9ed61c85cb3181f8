"""Loading any image set by its name."""

import dataclasses
from collections.abc import Callable

from harp_jax.data.bundled import digits, mnist5k
from harp_jax.data.idx import read_idx
from harp_jax.data.splits import DataError, Dataset, Source, carve, padded
from harp_jax.data.tfds_images import read_tfds, stream_tfds

BUNDLED: dict[str, Callable[[], Source]] = {"mnist5k": mnist5k, "digits": digits}
_IDX_PREFIX = "idx:"
SPLITS = ("train", "validation", "test")


def load(
    name: str,
    *,
    data_dir: str | None = None,
    seed: int,
    validation_examples: int,
    train_examples: int | None = None,
    test_examples: int | None = None,
    pad_to: int | None = None,
    image_size: int | None = None,
    workers: int = 0,
) -> Dataset:
    """Loads an image set and cuts a seeded validation split from its train split.

    Args:
        name: 'mnist5k' or 'digits' (bundled with installed packages), 'idx:PATH' (a folder of
            IDX files), or a set of TensorFlow Datasets such as 'cifar10', 'cifar100',
            'svhn_cropped', 'fashion_mnist', 'mnist'.
        data_dir: Folder of TensorFlow Datasets, a path or gs://; None means
            ~/tensorflow_datasets. Other sets ignore it.
        seed: Seed of the choice of validation and training examples, in [0, 2**64).
        validation_examples: Size of the validation split; 0 leaves it empty.
        train_examples: Size of the train split; None means all remaining examples.
        test_examples: Size of the test split, taken from its start; None means all of it.
        pad_to: Height and width, in pixels, to which images are zero-padded; None pads nothing.
        image_size: Side, in pixels, of the squares that are streamed from disk, see
            `harp_jax.data.streaming`. None decodes the whole set into memory.
        workers: Processes that decode a streamed set; 0 decodes in a thread of this process.

    Returns:
        The data set. Its train and validation splits are disjoint parts of the published train
        split.

    Raises:
        DataError: If the set is unknown, missing or damaged, or has too few examples.
    """
    try:
        source = _read(name, data_dir, image_size, workers)
    except DataError as error:
        raise DataError(f"data.name={name!r}: {error}") from error
    dataset = carve(
        name,
        source,
        seed=seed,
        validation_examples=validation_examples,
        train_examples=train_examples,
        test_examples=test_examples,
    )
    if pad_to is None:
        return dataset
    splits = {name: padded(getattr(dataset, name), pad_to) for name in SPLITS}
    return dataclasses.replace(dataset, **splits)


def _read(name: str, data_dir: str | None, image_size: int | None, workers: int) -> Source:
    is_local = name in BUNDLED or name.startswith(_IDX_PREFIX)
    if image_size is not None:
        if is_local:
            raise DataError(
                f"cannot be streamed (data.image_size={image_size}); only sets of TensorFlow "
                "Datasets can"
            )
        return stream_tfds(name, data_dir, image_size=image_size, workers=workers)
    if name in BUNDLED:
        return BUNDLED[name]()
    if is_local:
        return read_idx(name.removeprefix(_IDX_PREFIX))
    return read_tfds(name, data_dir)
