"""Loading any image set by its name."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from harp_jax.data.bundled import digits, mnist5k
from harp_jax.data.cifar import read_cifar
from harp_jax.data.folder import open_folder
from harp_jax.data.idx import read_idx
from harp_jax.data.npz import read_npz
from harp_jax.data.parquet import open_parquet
from harp_jax.data.photos import Photos, decode_all
from harp_jax.data.splits import DataError, Dataset, Source, carve, padded
from harp_jax.data.streaming import StreamedSplit
from harp_jax.data.svhn import read_svhn
from harp_jax.data.tfds_images import UnknownSetError, is_prepared, read_tfds, stream_tfds

BUNDLED: dict[str, Callable[[], Source]] = {"mnist5k": mnist5k, "digits": digits}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Arrays:
    """Files of decoded images.

    Attributes:
        form: How the name of such a set looks, for error messages.
        read: Reads the set, given what follows the prefix of its name.
    """

    form: str
    read: Callable[[str], Source]


@dataclass(frozen=True)
class Encoded:
    """Files of encoded images, which can be streamed from disk.

    Attributes:
        form: How the name of such a set looks, for error messages.
        open: Opens its train and test split, given what follows the prefix of its name.
    """

    form: str
    open: Callable[[str], tuple[Photos, Photos]]


# The kinds of a user's own data, by the prefix of the name.
SOURCES: dict[str, Arrays | Encoded] = {
    "npz:": Arrays("npz:FILE", read_npz),
    "folder:": Encoded("folder:DIR", open_folder),
    "parquet:": Encoded("parquet:GLOB", open_parquet),
    "cifar:": Arrays("cifar:DIR", read_cifar),
    "svhn:": Arrays("svhn:DIR", read_svhn),
    "idx:": Arrays("idx:DIR", read_idx),
}
_FORMS = (*BUNDLED, *(kind.form for kind in SOURCES.values()))
_ENCODED = ", ".join(kind.form for kind in SOURCES.values() if isinstance(kind, Encoded))
_ALLOWED = (
    f"allowed are {', '.join(map(repr, _FORMS))} and the image classification sets of TensorFlow "
    "Datasets ('mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'svhn_cropped', ...)"
)


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
    grey: bool = False,
    workers: int = 0,
) -> Dataset:
    """Loads an image set and cuts a seeded validation split from its train split.

    Args:
        name: 'mnist5k' or 'digits' (bundled with installed packages); 'npz:FILE', 'folder:DIR',
            'parquet:GLOB', 'cifar:DIR', 'svhn:DIR' or 'idx:DIR' (files of one's own); or a set of
            TensorFlow Datasets such as 'cifar10', 'cifar100', 'svhn_cropped', 'fashion_mnist',
            'mnist'.
        data_dir: Folder of TensorFlow Datasets, a path or gs://; None means
            ~/tensorflow_datasets. Other sets ignore it.
        seed: Seed of the choice of validation and training examples, in [0, 2**64).
        validation_examples: Size of the validation split; 0 leaves it empty.
        train_examples: Size of the train split; None means all remaining examples.
        test_examples: Size of the test split, taken from its start; None means all of it.
        pad_to: Height and width, in pixels, to which images are zero-padded; None pads nothing.
        image_size: Side, in pixels, of the squares that are streamed from disk, see
            `harp_jax.data.streaming`. None decodes the whole set into memory.
        grey: Whether the images of 'folder:DIR' and 'parquet:GLOB' are decoded to one channel
            instead of three; not with `image_size`.
        workers: Processes that decode a streamed set; 0 decodes in a thread of this process.

    Returns:
        The data set. Its train and validation splits are disjoint parts of the published train
        split.

    Raises:
        DataError: If the set is unknown, missing or damaged, or has too few examples.
    """
    try:
        source = _read(name, data_dir, image_size, grey, workers)
    except UnknownSetError as error:
        raise DataError(f"data.name={name!r}: {error}; {_ALLOWED}") from error
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


def check_here(name: str, data_dir: str | None) -> None:
    """Raises a DataError for a set that `load` would have to download.

    Args:
        name: See `load`.
        data_dir: See there.
    """
    known = name in BUNDLED or "".join(name.partition(":")[:2]) in SOURCES
    if not known and not is_prepared(name, data_dir):
        raise DataError(f"data.name={name!r}: not prepared on this machine")


def _read(
    name: str, data_dir: str | None, image_size: int | None, grey: bool, workers: int
) -> Source:
    prefix, colon, place = name.partition(":")
    kind = SOURCES.get(prefix + colon)
    if grey and (image_size is not None or not isinstance(kind, Encoded)):
        raise DataError(
            f"cannot be decoded to one channel (data.grey=True); allowed are {_ENCODED}, without "
            "data.image_size"
        )
    if isinstance(kind, Encoded):
        train, test = kind.open(place)
        if image_size is None:
            splits = decode_all(train, test, grey=grey)
        else:
            splits = tuple(
                StreamedSplit(photos, image_size=image_size, workers=workers)
                for photos in (train, test)
            )
        return Source(train.num_classes, train=splits[0], test=splits[1])
    if image_size is not None and (kind is not None or name in BUNDLED):
        raise DataError(
            f"cannot be streamed (data.image_size={image_size}); allowed are {_ENCODED} and sets "
            "of TensorFlow Datasets"
        )
    if kind is not None:
        return kind.read(place)
    if name in BUNDLED:
        return BUNDLED[name]()
    if image_size is not None:
        return stream_tfds(name, data_dir, image_size=image_size, workers=workers)
    return read_tfds(name, data_dir)
